"""The page in a real browser; skipped without Chromium (or BROWSER_PATH)."""

import os
import shutil

import pytest
from helpers import draw_xray

BROWSER = os.environ.get("BROWSER_PATH") or next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")


@pytest.fixture
def page(tmp_path):
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=BROWSER,
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
        )
        page = browser.new_page(viewport={"width": 1200, "height": 900})
        yield page
        browser.close()


def test_visitor_uploads_an_xray_and_sees_decision_and_attribution_map(page, app_url, tmp_path):
    requests = []
    page.on("request", lambda r: None if r.url.startswith(app_url) else requests.append(r.url))
    page.goto(app_url)
    page.get_by_text("not a medical device").wait_for(timeout=30_000)

    image = tmp_path / "xray.png"
    draw_xray(4, ill=True, size=(300, 240)).save(image)
    page.locator("input[type=file]").first.set_input_files(image)
    page.get_by_text("calibrated for a population in which half have it").wait_for(timeout=60_000)
    assert page.locator(".verdict span").first.inner_text() in {"PNEUMONIA", "NORMAL", "REFER"}
    shown = "all => all.filter(one => one.naturalWidth == 300).length >= 2"
    page.wait_for_function(f"({shown})([...document.images])", timeout=30_000)
    assert [url for url in requests if url.startswith("http")] == []


def test_page_reports_an_unreadable_file(page, app_url, tmp_path):
    page.goto(app_url)
    text = tmp_path / "scan.jpeg"
    text.write_text("no image")
    page.locator("input[type=file]").first.set_input_files(text)
    page.get_by_text("scan.jpeg is not an image that can be read").wait_for(timeout=60_000)
