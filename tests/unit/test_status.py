"""Statuses of errors, and what callers see of them."""

import errno

import pytest

from foley.errors import (
    BusyError,
    CheckpointError,
    DeviceError,
    FoleyError,
    NoFramesError,
    NotReadyError,
    OutputError,
    RequestError,
    VideoEmptyError,
    make_error,
)
from runners.status import INTERNAL_CODE, public_error, status_of


def family(kind: type[FoleyError]) -> list[type[FoleyError]]:
    return [kind, *(member for child in kind.__subclasses__() for member in family(child))]


ERRORS = family(FoleyError)


@pytest.mark.parametrize("kind", ERRORS)
def test_whose_fault_decides_the_class_of_the_status(kind: type[FoleyError]) -> None:
    status = status_of(kind).http
    assert status // 100 == (4 if issubclass(kind, RequestError) else 5)


def test_codes_are_unique_and_revive_their_class() -> None:
    assert len({kind.code for kind in ERRORS}) == len(set(ERRORS))
    error = make_error(NoFramesError.code, "none")
    assert type(error) is NoFramesError
    assert str(error) == "none"


def test_grpc_codes_exist() -> None:
    known = {
        "INVALID_ARGUMENT", "RESOURCE_EXHAUSTED", "CANCELLED", "INTERNAL", "UNAVAILABLE",
        "DEADLINE_EXCEEDED", "UNAUTHENTICATED", "NOT_FOUND", "PERMISSION_DENIED",
        "FAILED_PRECONDITION",
    }  # fmt: skip
    assert {status_of(kind).grpc for kind in ERRORS} <= known


def test_a_callers_mistake_is_public_in_full() -> None:
    public = public_error(VideoEmptyError("clip has 0 bytes"))
    assert (public.code, public.message) == ("video_empty", "clip has 0 bytes")
    assert (public.status.http, public.status.grpc) == (422, "INVALID_ARGUMENT")
    assert (public.redacted, public.retry_after_seconds) == (False, None)


@pytest.mark.parametrize("kind", [FoleyError, CheckpointError, DeviceError])
def test_an_error_of_the_server_is_redacted_and_keeps_its_code(kind: type[FoleyError]) -> None:
    public = public_error(kind("/secret/path"))
    assert public.code == kind.code
    assert "secret" not in public.message
    assert public.redacted


def test_an_exception_of_another_library_is_internal() -> None:
    public = public_error(KeyError("/secret/path"))
    assert (public.code, public.status.http, public.status.grpc) == (INTERNAL_CODE, 500, "INTERNAL")
    assert "secret" not in public.message
    assert public.redacted


def test_a_redacted_error_is_redacted_even_if_its_message_is_the_public_one() -> None:
    # Its traceback belongs into the log all the same.
    text = public_error(DeviceError("anything")).message
    assert public_error(DeviceError(text)).redacted


def test_the_delay_is_in_whole_seconds_that_are_enough() -> None:
    error = NotReadyError("loading")
    assert public_error(error).retry_after_seconds == 5
    error.retry_after_seconds = 11.2
    assert public_error(error).retry_after_seconds == 12
    waiting_does_not_help = DeviceError("broken")
    waiting_does_not_help.retry_after_seconds = 3
    assert public_error(waiting_does_not_help).retry_after_seconds is None
    assert public_error(BusyError("full")).retry_after_seconds == 5


def test_a_full_disk_has_one_retryable_code() -> None:
    public = public_error(OSError(errno.ENOSPC, "No space left on device", "/secret/path"))
    assert (public.code, public.status.http) == ("storage_full", 503)
    assert public.retry_after_seconds
    assert "secret" not in public.message


def test_a_full_disk_is_found_behind_the_errors_that_it_has_led_to() -> None:
    error = OutputError("foley-1.mp4 cannot be written")
    assert public_error(error).code == OutputError.code
    error.__cause__ = OSError(errno.ENOSPC, "No space left on device")
    assert public_error(error).code == "storage_full"
    assert public_error(OSError(errno.EACCES, "Permission denied")).code == "internal"
