"""What is known of all errors."""

import errno

from foley.cli.stop_signals import is_interruption
from foley.errors import iterate_causes
from runners.storage import is_storage_full


def test_errors_that_have_led_to_one_another_are_looked_at_once() -> None:
    kept, made = OSError("kept"), ValueError("made of it")
    # As by a library that raises the error which it has kept while `made` is handled.
    made.__cause__, kept.__context__ = kept, made
    assert list(iterate_causes(made)) == [made, kept]
    assert not is_storage_full(made)
    assert not is_interruption(made)
    kept.errno = errno.ENOSPC
    assert is_storage_full(made)
    assert list(iterate_causes(None)) == []
