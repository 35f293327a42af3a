"""API keys."""

from pathlib import Path

import pytest

from foley.errors import ConfigError, UnauthorizedError
from runners.auth import ApiKeys, caller_of
from runners.settings import Settings, load_settings


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": "Bearer first"},
        {"authorization": "bearer  first "},
        {"x-api-key": "first"},
        {"authorization": "Basic abc", "x-api-key": "second"},
    ],
)
def test_a_known_key_opens(headers: dict[str, str]) -> None:
    assert ApiKeys(["first", "second"]).owner_of(headers)


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": ""},
        {"authorization": "Bearer"},
        {"authorization": "Bearer "},
        {"authorization": "Basic first"},
        {"authorization": "Bearer firs"},
        {"authorization": "Bearer first,second"},
        {"authorization": "Bearer FIRST"},
        {"authorization": "Bearer wr\u00f6ng"},
        {"authorization": "Bearer wrong", "x-api-key": "first"},  # the standard header decides
        {"x-api-key": "third"},
    ],
)
def test_other_headers_do_not_open(headers: dict[str, str]) -> None:
    with pytest.raises(UnauthorizedError) as caught:
        ApiKeys(["first", "second"]).owner_of(headers)
    assert "first" not in str(caught.value)


def test_each_key_is_its_own_owner_and_is_not_revealed() -> None:
    keys = ApiKeys(["first", "second"])
    owners = {keys.owner_of({"x-api-key": key}) for key in ("first", "second")}
    assert len(owners) == 2
    assert not owners & {"first", "second", ""}


def test_without_keys_everybody_may_call() -> None:
    assert ApiKeys([]).owner_of({}) == ApiKeys([]).owner_of({"x-api-key": "any"}) == ""


@pytest.mark.parametrize(
    ("owner", "address", "caller"),
    [
        ("a" * 64, "192.0.2.1", "a" * 64),
        ("", "192.0.2.1", "192.0.2.1"),
        ("", "::ffff:192.0.2.1", "192.0.2.1"),
        ("", "2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("", "", ""),
        ("", "not an address", ""),
    ],
)
def test_turns_are_counted_by_key_or_by_address(owner: str, address: str, caller: str) -> None:
    assert caller_of(owner, address) == caller


def test_keys_come_from_both_settings_and_are_not_shown(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("third\n\n fourth \n")
    settings = Settings.model_validate({"api_keys": "first, second,", "api_keys_file": file})
    assert settings.keys == ("first", "second", "third", "fourth")
    assert "first" not in repr(settings)
    assert Settings().keys == ()


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("good,b\u00e4d-secret", "number 2"),
        ("a b-secret", "number 1"),
        (",", "no key"),
        ("", "set but empty"),
    ],
)
def test_malformed_keys_end_the_start_and_are_not_shown(
    monkeypatch: pytest.MonkeyPatch, value: str, words: str
) -> None:
    monkeypatch.setenv("FOLEY_API_KEYS", value)
    with pytest.raises(ConfigError, match=words) as caught:
        load_settings()
    assert "secret" not in str(caught.value)


def test_an_empty_variable_beside_a_file_of_keys_is_no_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "keys"
    file.write_text("a-key")
    monkeypatch.setenv("FOLEY_API_KEYS", "")
    monkeypatch.setenv("FOLEY_API_KEYS_FILE", str(file))
    assert load_settings().keys == ("a-key",)


def test_a_file_of_keys_that_is_not_there_ends_the_start(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("FOLEY_API_KEYS_FILE", str(tmp_path / "none"))
    with pytest.raises(ConfigError, match="FOLEY_API_KEYS_FILE cannot be read"):
        load_settings()
