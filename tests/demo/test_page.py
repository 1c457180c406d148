"""The page in a real browser. Skips where there is none: Chromium, or a BROWSER that is one."""

import os
import shutil

import pytest
from helpers import draw_xray
from test_app import app_url as app_url  # the same server

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


def test_visitor_uploads_a_film_and_sees_decision_and_heat(page, app_url, tmp_path):
    strangers = []
    page.on("request", lambda r: None if r.url.startswith(app_url) else strangers.append(r.url))
    page.goto(app_url)
    page.get_by_text("not a medical device").wait_for(timeout=30_000)

    dicom_image = tmp_path / "film.png"
    draw_xray(4, ill=True, size=(300, 240)).save(dicom_image)
    page.locator("input[type=file]").first.set_input_files(dicom_image)
    page.get_by_text("calibrated for a population in which half have it").wait_for(timeout=60_000)
    assert page.locator(".verdict span").first.inner_text() in {"PNEUMONIA", "NORMAL", "REFER"}
    shown = "all => all.filter(one => one.naturalWidth == 300).length >= 2"
    page.wait_for_function(f"({shown})([...document.images])", timeout=30_000)
    assert [url for url in strangers if url.startswith("http")] == []


def test_visitor_is_told_what_is_wrong_with_a_file(page, app_url, tmp_path):
    page.goto(app_url)
    text = tmp_path / "scan.jpeg"
    text.write_text("no image")
    page.locator("input[type=file]").first.set_input_files(text)
    page.get_by_text("scan.jpeg is not an image that can be read").wait_for(timeout=60_000)
