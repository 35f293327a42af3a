"""Durable jobs on the page."""

import re
from pathlib import Path

import pytest
from playwright.sync_api import expect

from runners.page.jobs import read_kept
from tests.page.conftest import RESULT_SECONDS, Tab
from tests.patience import scale
from tests.server import Server

pytestmark = pytest.mark.long


def test_a_job_is_listed_after_a_reload_and_its_file_is_fetched(
    tab: Tab, clips: Path, server: Server
) -> None:
    page = tab.page
    listed = page.locator("#job-list li")
    submit = page.get_by_role("button", name="Make it as a job")
    submit.click()
    expect(page.locator("#error-clip")).to_contain_text("There is no clip yet")
    tab.upload(clips / "short.mp4")
    page.get_by_label("Prompt").first.fill("<i>rain</i>")
    tab.set_steps(2)
    submit.click()
    expect(listed).to_have_count(1)
    page.reload()
    expect(listed).to_contain_text("<i>rain</i> succeeded", timeout=1000 * scale(RESULT_SECONDS))
    link = listed.get_by_role("link", name="foley-1.mp4")
    with page.expect_download() as download:
        link.click()
    assert download.value.path().stat().st_size > 1000
    (job,) = server.client.get("/v1/jobs").json()["jobs"]
    assert server.client.delete(job["status_url"]).status_code == 204
    page.reload()
    expect(page.get_by_role("button", name="Make it as a job")).to_be_visible()
    expect(listed).to_have_count(0)


@pytest.mark.parametrize("kept", [None, "x", {}, [None], [{"id": "../x"}], [{"id": 7}], [[]]])
def test_what_a_browser_has_stored_may_be_anything(kept: object) -> None:
    assert read_kept(kept) == []
    many = [{"id": f"{number:032x}", "title": 99 * "x"} for number in range(99)]
    assert len(read_kept(many)) == 20
    assert re.fullmatch("x{40}", read_kept(many)[0]["title"])
