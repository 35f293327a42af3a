"""What one API process takes in at once."""

import asyncio
import contextlib

import pytest

from foley.errors import BusyError, StorageFullError, UploadTooSlowError
from runners.jobs import intake
from runners.jobs.intake import Intake


def make(
    *, max_uploads: int = 4, max_bytes: int = 100, key_share: float = 1.0, requests: int = 0
) -> Intake:
    return Intake(
        max_uploads=max_uploads,
        max_bytes=max_bytes,
        min_bytes_per_second=100,
        key_share=key_share,
        requests_per_minute=requests,
    )


def test_uploads_have_a_number_of_their_own_that_comes_back() -> None:
    receiving = make(max_uploads=2)
    with contextlib.ExitStack() as stack:
        for owner in "ab":
            stack.enter_context(receiving.receive(owner))
        with pytest.raises(BusyError, match="2 uploads"), receiving.receive("c"):
            pass
    with receiving.receive("c"):
        pass


def test_a_key_holds_its_share_of_the_uploads_and_leaves_the_rest_to_others() -> None:
    receiving = make(max_uploads=4, key_share=0.5)
    with receiving.receive("a"), receiving.receive("a"):
        with pytest.raises(BusyError, match="2 uploads of this caller"), receiving.receive("a"):
            pass
        with receiving.receive("b"):
            pass
    with receiving.receive("a"):
        pass


def test_uploads_share_their_bytes_until_they_end() -> None:
    receiving = make(max_bytes=100)
    with receiving.receive("a") as first:
        first.add(60)
        with receiving.receive("b") as second:
            second.add(40)
            with pytest.raises(BusyError, match="100 bytes together"):
                second.add(1)
    with receiving.receive("b") as third:
        third.add(100)


def test_an_upload_looks_for_room_each_mebibyte() -> None:
    looked: list[int] = []

    def look(num_bytes: int) -> None:
        looked.append(num_bytes)
        if len(looked) > 1:
            raise StorageFullError

    with make(max_bytes=10 * intake.ROOM_BYTES).receive("a", look) as upload:
        for _ in range(16):
            upload.add(intake.ROOM_BYTES // 16)
        assert looked == [intake.ROOM_BYTES]
        with pytest.raises(StorageFullError):
            upload.add(2 * intake.ROOM_BYTES)


def test_a_key_has_a_number_of_requests_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(intake.time, "monotonic", lambda: now)
    receiving = make(requests=2)
    for moment in (1000.0, 1020.0):
        now = moment
        receiving.check_requests("a")
        receiving.count_request("a")
        with receiving.receive("a"):  # an upload is no request
            pass
    now = 1030.0
    for call in (receiving.check_requests, receiving.count_request):
        with pytest.raises(BusyError, match="2 requests within a minute") as caught:
            call("a")
        assert caught.value.retry_after_seconds == 30.0  # when the first one is a minute ago
    receiving.count_request("b")
    now = 1060.0
    receiving.count_request("a")
    for now in range(2000, 4000):  # as many addresses as one likes
        receiving.count_request(str(now))
    assert len(receiving._recent) == 60


def test_a_request_without_a_place_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(intake.time, "monotonic", lambda: now)
    receiving = make(requests=1)
    for owner in "aab":
        with pytest.raises(BusyError, match="no place"), receiving.counting(owner):
            raise BusyError("no place")
    with pytest.raises(StorageFullError), receiving.counting("a"):
        raise StorageFullError
    with pytest.raises(BusyError, match="1 requests within a minute"):
        receiving.check_requests("a")
    now = 1060.0
    receiving.check_requests("a")  # which leaves nothing behind
    receiving.count_request("c")
    assert list(receiving._recent) == ["c"]


@pytest.mark.parametrize(("num_bytes", "end"), [(0, "slow"), (999, "slow"), (1000, "whole")])
def test_an_upload_keeps_to_a_least_rate_for_as_long_as_it_lasts(
    monkeypatch: pytest.MonkeyPatch, num_bytes: int, end: str
) -> None:
    windows = iter([10_000, *[num_bytes] * 4])  # a first burst pays for no later stall

    async def sleep(seconds: float) -> None:  # a window passes, in which so many bytes come
        assert seconds == 10.0
        if (arrived := next(windows, None)) is None:
            raise asyncio.CancelledError  # the upload is whole
        upload.add(arrived)

    monkeypatch.setattr(intake.asyncio, "sleep", sleep)
    with make(max_bytes=10**9).receive("a") as upload:
        if end == "slow":
            with pytest.raises(UploadTooSlowError, match=f"{num_bytes} bytes came within 10 s"):
                asyncio.run(upload.watch_rate())
            assert next(windows) == num_bytes  # the first slow window ended it
        else:
            with pytest.raises(asyncio.CancelledError):
                asyncio.run(upload.watch_rate())
