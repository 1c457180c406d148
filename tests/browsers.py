"""Chromium with the page, and what its tests do there; skipped without it (or BROWSER_PATH)."""

import os
import re
import shutil

import pytest
from helpers import draw_xray

BROWSER = os.environ.get("BROWSER_PATH") or next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
SLOW = 60_000  # milliseconds
needs_browser = pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=BROWSER,
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
        )
        yield browser
        browser.close()


@pytest.fixture(
    params=[
        pytest.param((1280, "light"), id="desk"),
        pytest.param((390, "dark"), id="phone", marks=pytest.mark.slow),
    ]
)
def page(browser, app_url, request):
    """The open page; it must ask no other server and fit the screen."""
    width, scheme = request.param
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page = context.new_page()
    elsewhere, faults = [], []
    own = (app_url, "data:", "blob:")
    page.on("request", lambda r: None if r.url.startswith(own) else elsewhere.append(r.url))
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.goto(app_url)
    page.get_by_text("not a medical device").first.wait_for(timeout=SLOW)
    yield page
    assert elsewhere == [] and faults == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    context.close()


@pytest.fixture
def xray(tmp_path):
    path = tmp_path / "xray.png"
    draw_xray(4, ill=True, size=(300, 240)).save(path)
    return path


def upload(page, path) -> str:
    """Choose a file, also in the place of another, and return the decision."""
    page.locator("#viewer .tools button").first.wait_for(timeout=SLOW)
    page.locator("#viewer input.file").set_input_files(path)
    wait_for_name(page, path.name)
    return page.locator("#answer .decision").get_attribute("data-decision")


def wait_for_name(page, name) -> None:
    """Wait for the answer to a file or an example: its name comes with it."""
    exact = re.compile(rf"^{re.escape(name)}( ·|$)")
    page.locator("#viewer .corner.name", has_text=exact).wait_for(timeout=SLOW)


def open_more(page) -> None:
    """On a phone all but image, verdict and warnings is folded."""
    if not page.locator("#viewer .modes").is_visible():
        page.locator("#viewer .more > summary").click()


def show_map(page) -> None:
    """Ask why; the page shows no map by itself, since none passed its tests."""
    open_more(page)
    assert page.locator("#viewer .map").count() == 0
    page.get_by_role("button", name="Why?").click()
    page.locator("#viewer .map").first.wait_for(timeout=SLOW)


def open_tab(page, name) -> None:
    """Open a tab. The page moves tabs behind a button when it has measured them: try again then."""
    from playwright.sync_api import TimeoutError

    for _ in range(10):
        tab = page.get_by_role("tab", name=name, exact=True)
        try:
            if not tab.is_visible():
                page.locator(".overflow-menu button").first.click(timeout=3000)
                tab = page.locator(".overflow-dropdown button", has_text=name)
            tab.click(timeout=3000)
            return
        except TimeoutError:
            page.wait_for_timeout(500)
    raise AssertionError(f"The tab {name} did not open.")
