"""The page in a real browser; skipped without Chromium (or BROWSER_PATH)."""

import os
import re
import shutil

import numpy as np
import pytest
from helpers import ROOT, draw_xray
from PIL import Image
from xray_files import make_dicom

BROWSER = os.environ.get("BROWSER_PATH") or next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")
SLOW = 60_000  # milliseconds


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
    page.locator("#xray-file input[type=file]").set_input_files(path)
    page.locator("#answer .decision").wait_for(timeout=SLOW)
    return page.locator("#answer .badge").inner_text()


def level_of(page) -> str:
    return page.locator("#viewer feFuncR").get_attribute("intercept")


def show_map(page) -> None:
    """Click on what the page offers; it shows no map by itself, since none passed its tests."""
    page.locator("#viewer img").first.wait_for(timeout=SLOW)
    assert page.locator("#viewer .map").count() == 0
    page.get_by_role("button", name="Show the map of").click()
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


@pytest.mark.slow
def test_every_tab_is_accessible_by_wcag_aa(page, xray):
    from axe_playwright_python.sync_playwright import Axe

    upload(page, xray)
    show_map(page)
    page.get_by_label("Beside it").wait_for()
    if page.viewport_size["width"] < 400:
        page.set_viewport_size({"width": 360, "height": 800})
    for name in ("Image", "What if", "Batch", "About"):
        open_tab(page, name)
        page.wait_for_timeout(800)  # until nothing is half transparent
        assert page.evaluate("document.documentElement.scrollWidth") <= page.viewport_size["width"]
        rules = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]
        found = Axe().run(page, options={"runOnly": rules}).response
        assert len(found["passes"]) > 20
        assert [(one["id"], one["nodes"][0]["html"]) for one in found["violations"]] == []


def test_answer_view_and_maps_of_an_xray(page, xray, tmp_path):
    assert upload(page, xray) in {"PNEUMONIA", "NORMAL", "REFER"}
    assert "Positive at or above" in page.locator("#answer").inner_text()
    show_map(page)
    scale = page.locator("#answer .scale").get_attribute("aria-label")
    assert re.search(r"Probability of pneumonia.*%.*a person must look", scale)
    assert page.locator("#viewer img:not([alt])").count() == 0
    # On a phone the answer stands above the X-ray.
    answer, viewer = (page.locator(one).bounding_box() for one in ("#answer", "#viewer"))
    assert answer["y"] <= viewer["y"] + 200
    before = level_of(page)
    page.locator("#viewer [data-tool=level]").fill("60")
    page.wait_for_function(
        "before => document.querySelector('#viewer feFuncR').getAttribute('intercept') != before",
        arg=before,
    )
    page.get_by_role("button", name="Invert").click()
    assert page.locator("#viewer [data-tool=invert]").get_attribute("aria-pressed") == "true"
    stage = page.locator("#viewer .stage").first
    stage.focus()
    page.keyboard.press("+")
    assert "scale(1.25)" in page.locator("#viewer .xray").first.get_attribute("style")
    with page.expect_download() as saved:
        page.get_by_role("button", name="Save image").click()
    saved.value.save_as(tmp_path / "saved.png")
    with Image.open(tmp_path / "saved.png") as image:
        assert image.size == (300, 240) and np.ptp(np.asarray(image)) > 50
    page.get_by_role("button", name="Reset view").click()
    assert level_of(page) == before
    # Two maps side by side.
    page.get_by_label("Beside it").click()
    page.get_by_role("option", name=re.compile("Occlusion")).click()
    page.wait_for_function("document.querySelectorAll('#viewer .map').length == 2", timeout=SLOW)
    assert page.locator("#viewer figcaption").count() == 3


@pytest.mark.slow
def test_report_of_a_dicom_names_no_patient(page, tmp_path):
    path = tmp_path / "Doe_Jane.dcm"
    values = np.asarray(draw_xray(4, ill=True, size=(300, 240)))
    path.write_bytes(make_dicom(values, PatientName="Doe^Jane"))
    upload(page, path)
    for button, suffix, start in (("Report as a page", "html", b"<!doctype html>"),
                                  ("Report as PDF", "pdf", b"%PDF")):  # fmt: skip
        with page.expect_download(timeout=SLOW) as saved:
            page.get_by_role("button", name=button).click()
        assert saved.value.suggested_filename == f"xray-report.{suffix}"
        saved.value.save_as(tmp_path / f"report.{suffix}")
        content = (tmp_path / f"report.{suffix}").read_bytes()
        assert content.startswith(start) and len(content) > 10_000
        assert b"Doe" not in content and b"Jane" not in content
    assert b"not a medical device" in (tmp_path / "report.html").read_bytes()


@pytest.mark.slow
def test_a_hidden_part_moves_the_probability(page, xray):
    upload(page, xray)
    open_tab(page, "What if")
    page.locator("#mask img").wait_for(timeout=SLOW)
    page.get_by_text("With the hidden part").wait_for(timeout=SLOW)
    before = page.locator("#mask img").get_attribute("src")
    page.locator("#mask .stage").scroll_into_view_if_needed()
    box = page.locator("#mask .stage").bounding_box()
    page.mouse.move(box["x"] + 0.2 * box["width"], box["y"] + 0.2 * box["height"])
    page.mouse.down()
    page.mouse.move(box["x"] + 0.7 * box["width"], box["y"] + 0.8 * box["height"], steps=4)
    page.mouse.up()
    changed = "before => document.querySelector('#mask img').src != before"
    page.wait_for_function(changed, arg=before, timeout=SLOW)
    given = "[...document.querySelectorAll('#what-if .point')].map(one => one.dataset.probability)"
    before, after = page.evaluate(given)
    assert before != after
    page.get_by_role("button", name="Show all again").click()
    page.wait_for_function(
        f"() => {{ const all = {given}; return all[0] == all[1]; }}", timeout=SLOW
    )


def test_a_batch_becomes_a_table_and_a_csv(page, tmp_path):
    open_tab(page, "Batch")
    files = []
    for number in range(19):
        files.append(tmp_path / f"x{number}.png")
        draw_xray(number, ill=bool(number % 2), size=(120, 100)).save(files[-1])
    files.append(tmp_path / "torn.png")
    files[-1].write_bytes(b"\x89PNG torn")
    inputs = page.locator("#batch-files input[type=file]")
    inputs.wait_for(state="attached", timeout=SLOW)
    page.wait_for_timeout(1000)  # a tab's parts get their events after they are drawn
    inputs.first.set_input_files(files)
    # The page may set the end of a file's name apart.
    page.locator("#batch-files").get_by_text("torn").first.wait_for(timeout=SLOW)
    page.get_by_role("button", name="Score them").click()
    page.get_by_text("20 images: ").wait_for(timeout=SLOW)
    assert page.locator(".batch tbody tr").count() == 20
    if page.viewport_size["width"] < 400:  # rows become blocks, in which a name has room
        assert page.locator(".batch td:nth-child(2)").first.bounding_box()["width"] > 140
    assert "torn.png" in page.locator(".batch").inner_text()
    with page.expect_download(timeout=SLOW) as saved:
        page.get_by_role("button", name="Save as CSV").click()
    saved.value.save_as(tmp_path / "saved.csv")
    lines = (tmp_path / "saved.csv").read_text().splitlines()
    assert lines[0] == "file,probability,threshold,decision,warnings" and len(lines) == 21


def test_page_reports_an_unreadable_file_and_goes_on(page, xray, tmp_path):
    text = tmp_path / "scan.jpeg"
    text.write_text("no image")
    page.locator("#xray-file input[type=file]").set_input_files(text)
    page.get_by_text("scan.jpeg is not an image that can be read").wait_for(timeout=SLOW)
    page.get_by_label("Clear").first.click()
    assert upload(page, xray)


@pytest.mark.slow
def test_about_says_the_limits_first(page):
    open_tab(page, "About")
    page.get_by_role("heading", name="Limits").wait_for(timeout=SLOW)
    text = page.locator("body").inner_text()
    assert text.index("Limits") < text.index("Measured") < text.index("How to cite")


@pytest.mark.slow
def test_keyboard_alone_reaches_the_tools(page, xray):
    upload(page, xray)
    show_map(page)
    page.locator("#viewer .stage").first.focus()
    reached = set()
    for _ in range(8):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.dataset.tool || ''"))
    assert {"preset", "level", "window", "zoom", "opacity", "invert", "reset"} <= reached


@pytest.mark.slow
def test_the_drawing_shows_all_that_the_gate_would_refuse(browser, tmp_path):
    from conftest import find_free_port, serve_app

    from pneumonia_hf.models.model_folder import DEFAULT_MODEL

    model = shutil.copytree(DEFAULT_MODEL, tmp_path / "model")  # the log is written beside it
    with serve_app(model, find_free_port()) as url:
        page = browser.new_page()
        page.goto(url)
        assert upload(page, ROOT / "docs" / "drawn_xray.png") == "REFER"
        page.get_by_text("Try a drawing").click()
        page.locator("#answer .badge", has_text="REFER").wait_for(timeout=SLOW)
        text = page.locator("#answer").inner_text()
        assert "%" in text and "unlike those" in text
        assert "test images scored like this" not in text  # they were X-rays
        show_map(page)
        assert "(failed a test)" in page.locator("#viewer figcaption").last.inner_text()
        open_tab(page, "What if")
        page.get_by_text("With the hidden part").wait_for(timeout=SLOW)
        page.close()
