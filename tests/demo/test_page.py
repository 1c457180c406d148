"""The page in a real browser, with the app behind it."""

import re
import shutil

import browsers
import numpy as np
import pytest
from browsers import needs_browser
from helpers import draw_xray
from PIL import Image
from xray_files import make_dicom

pytestmark = needs_browser
browser = browsers.browser
SLOW = 60_000  # milliseconds


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


# The texts that lie over a button, an icon or an image to which they do not belong.
COVERED = """() => {
  const viewer = document.querySelector("#viewer"), isSeen = (one) => one.checkVisibility();
  const found = [], texts = document.createTreeWalker(viewer, NodeFilter.SHOW_TEXT);
  const parts = [...viewer.querySelectorAll("button, svg, img")].filter(isSeen);
  while (texts.nextNode()) {
    const text = texts.currentNode, range = document.createRange();
    if (!text.textContent.trim() || !isSeen(text.parentElement)) continue;
    range.selectNodeContents(text);
    for (const one of range.getClientRects())
      for (const part of parts.filter((part) => !part.contains(text))) {
        const other = part.getBoundingClientRect();
        const wide = Math.min(one.right, other.right) - Math.max(one.left, other.left);
        const high = Math.min(one.bottom, other.bottom) - Math.max(one.top, other.top);
        if (wide > 1 && high > 1) found.push([text.textContent, part.outerHTML.slice(0, 80)]);
      }
  }
  return found;
}"""


def test_no_text_of_the_empty_viewer_covers_an_icon_or_a_button(page):
    page.locator("#viewer .examples button").first.wait_for(timeout=SLOW)
    for width in (page.viewport_size["width"], 1440, 390, 360):
        page.set_viewport_size({"width": width, "height": 900})
        page.wait_for_timeout(300)
        assert page.evaluate(COVERED) == [], width
    page.set_viewport_size({"width": 390, "height": 900})


@pytest.mark.slow
def test_every_tab_is_accessible_by_wcag_aa(page, xray):
    from axe_playwright_python.sync_playwright import Axe

    def check() -> None:
        page.wait_for_timeout(800)  # until nothing is half transparent
        assert page.evaluate("document.documentElement.scrollWidth") <= page.viewport_size["width"]
        rules = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]
        found = Axe().run(page, options={"runOnly": rules}).response
        assert len(found["passes"]) > 20
        assert [(one["id"], one["nodes"][0]["html"]) for one in found["violations"]] == []

    if page.viewport_size["width"] < 400:
        page.set_viewport_size({"width": 360, "height": 800})
    page.locator("#viewer .examples button").first.wait_for(timeout=SLOW)
    check()
    upload(page, xray)
    show_map(page)
    check()
    page.locator(".modes [data-do=hide]").click()
    page.locator(".panel.hide .scale").wait_for(timeout=SLOW)
    check()
    page.locator(".modes [data-do=opacity]").click()
    page.locator(".panel.opacity .scale").wait_for(timeout=SLOW)
    check()
    open_tab(page, "Batch")
    check()
    inputs = page.locator("#batch-files input[type=file]")
    page.wait_for_timeout(1000)  # a tab's parts get their events after they are drawn
    inputs.first.set_input_files(xray)
    page.locator("#batch-files").get_by_text("xray").first.wait_for(timeout=SLOW)
    page.get_by_role("button", name="Analyse").click()
    page.get_by_text("1 X-ray analysed.").wait_for(timeout=SLOW)
    check()
    open_tab(page, "About")
    check()


def test_answer_view_and_maps_of_an_xray(page, xray, tmp_path):
    assert upload(page, xray) in {"PNEUMONIA", "NORMAL", "REFER"}
    scale = page.locator("#answer .scale").get_attribute("aria-label")
    assert re.search(r"robability.*%", scale)
    # On a phone the answer follows the X-ray at once, and the rest is folded.
    viewer, answer = (page.locator(one).bounding_box() for one in ("#viewer .left", "#answer"))
    if page.viewport_size["width"] < 400:
        assert 0 <= answer["y"] - viewer["y"] - viewer["height"] < 40
        assert not page.locator("#viewer .modes").is_visible()
    with page.expect_download() as saved:
        page.get_by_role("button", name="Save the image").click()
    assert saved.value.suggested_filename == "xray.png"
    saved.value.save_as(tmp_path / "saved.png")
    with Image.open(tmp_path / "saved.png") as image:
        assert image.size == (300, 240) and np.ptp(np.asarray(image)) > 50
    show_map(page)
    page.locator("#viewer .stage").focus()
    page.keyboard.press("m")
    assert page.locator("#viewer .maps").evaluate("one => one.style.opacity") == "0"
    page.get_by_role("button", name=re.compile("Compare with Occlusion")).click()
    page.wait_for_function("document.querySelectorAll('#viewer .map').length == 2", timeout=SLOW)


PROBABILITY = "one => one.querySelector('.point:not(.before)').dataset.probability"


@pytest.mark.slow
def test_a_hidden_part_moves_the_probability_by_mouse_and_by_keys(page, xray):
    upload(page, xray)
    open_more(page)
    page.get_by_role("button", name="What if I hide something?").click()
    result = page.locator(".panel.hide .result")
    result.locator(".scale").wait_for(timeout=SLOW)

    def moves(action) -> None:
        before = [result.evaluate(PROBABILITY), page.locator("#viewer .xray").get_attribute("src")]
        action()
        page.wait_for_function(
            f"""([probability, image]) => {{
              const found = {PROBABILITY};
              return found(document.querySelector('.panel.hide .result')) !== probability
                && document.querySelector('#viewer .xray').src !== image;
            }}""",
            arg=before,
            timeout=SLOW,
        )

    def drag() -> None:
        box = page.locator("#viewer .film").bounding_box()
        at = [(box["x"] + share * box["width"], box["y"] + share * box["height"])
              for share in (0.2, 0.7)]  # fmt: skip
        page.mouse.move(*at[0])
        page.mouse.down()
        page.mouse.move(*at[1], steps=4)
        page.mouse.up()

    page.locator("#viewer .stage").scroll_into_view_if_needed()
    moves(drag)
    page.locator("#viewer .stage").focus()
    for key in ("ArrowRight", "Shift+ArrowDown"):
        moves(lambda key=key: page.keyboard.press(key))
    page.get_by_label("Hidden border").focus()
    moves(lambda: [page.keyboard.press("ArrowRight") for _ in range(5)])
    page.get_by_role("button", name="Show all again").click()
    dots = "[...document.querySelectorAll('.panel.hide .point')]"
    rounded = f"{dots}.map(one => Number(one.dataset.probability).toFixed(5))"
    same = f"() => new Set({rounded}).size === 1"
    page.wait_for_function(same, timeout=SLOW)
    # Leaving shows the whole X-ray again.
    page.get_by_role("button", name="What if I hide something?").click()
    assert page.locator("#answer").is_visible()


def test_an_opacity_is_moved_and_grown_by_mouse_and_by_keys(page):
    page.locator("#viewer .examples [data-do=opacity]").click(timeout=SLOW)
    result = page.locator(".panel.opacity .result")
    result.locator(".scale").wait_for(timeout=SLOW, state="attached")
    assert "In a lung" in result.inner_text()
    page.locator("#viewer .map").first.wait_for(timeout=SLOW, state="attached")
    images = set()
    for key in ("ArrowRight", "Shift+ArrowLeft", "+"):
        images.add(before := page.locator("#viewer .xray").get_attribute("src"))
        page.keyboard.press(key)
        changed = "before => document.querySelector('#viewer .xray').src !== before"
        page.wait_for_function(changed, arg=before, timeout=SLOW)
    assert len(images) == 3
    assert page.locator("#viewer .size").text_content() == "84 mm"
    box = page.locator("#viewer .film").bounding_box()
    page.mouse.move(box["x"] + 0.45 * box["width"], box["y"] + 0.93 * box["height"])
    page.mouse.down()
    page.mouse.up()
    outside = (
        "() => document.querySelector('.panel.opacity .result').textContent.includes('Outside')"
    )
    page.wait_for_function(outside, timeout=SLOW)
    # Back to where it was opened from.
    page.locator(".modes [data-do=opacity]").click()
    page.locator("#viewer .welcome").wait_for()


@pytest.mark.slow
def test_report_of_a_dicom_names_no_patient(page, tmp_path):
    path = tmp_path / "Doe_Jane.dcm"
    values = np.asarray(draw_xray(4, ill=True, size=(300, 240)))
    path.write_bytes(make_dicom(values, PatientName="Doe^Jane", ViewPosition="AP"))
    upload(page, path)
    assert page.locator("#viewer .corner.name").inner_text() == "Doe_Jane.dcm · AP"
    open_more(page)
    for button, suffix, start in (("Report as a page", "html", b"<!doctype html>"),
                                  ("Report as PDF", "pdf", b"%PDF")):  # fmt: skip
        with page.expect_download(timeout=SLOW) as saved:
            page.get_by_role("button", name=button).click()
        assert saved.value.suggested_filename == f"Doe_Jane-report.{suffix}"
        saved.value.save_as(tmp_path / f"report.{suffix}")
        content = (tmp_path / f"report.{suffix}").read_bytes()
        assert content.startswith(start) and len(content) > 10_000
        assert b"Doe" not in content and b"Jane" not in content
    assert b"not a medical device" in (tmp_path / "report.html").read_bytes()


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
    clear = page.locator("#batch-files").get_by_label("Clear").first.bounding_box()
    assert min(clear["width"], clear["height"]) >= 30
    page.wait_for_function("document.activeElement.textContent.trim() === 'Analyse'", timeout=SLOW)
    page.keyboard.press("Enter")
    page.get_by_text("20 X-rays analysed.").wait_for(timeout=SLOW)
    assert page.locator(".batch tbody tr").count() == 20
    if page.viewport_size["width"] < 400:  # rows become blocks, in which a name has room
        assert page.locator(".batch td:nth-child(2)").first.bounding_box()["width"] > 140
    assert "torn.png" in page.locator(".batch").inner_text()
    with page.expect_download(timeout=SLOW) as saved:
        page.get_by_role("button", name="Save as CSV").click()
    saved.value.save_as(tmp_path / "saved.csv")
    lines = (tmp_path / "saved.csv").read_text().splitlines()
    assert lines[0].startswith("file,probability,threshold,decision,warnings")
    assert len(lines) == 21
    # Chips filter, headings sort.
    page.get_by_role("button", name="1 not readable").click()
    assert page.locator(".batch tbody tr:visible").all_inner_texts()[0].count("torn.png")
    assert page.locator(".batch tbody tr:visible").count() == 1
    page.get_by_role("button", name="all 20").click()
    page.locator("#batch").get_by_role("button", name="File", exact=True).click()
    names = page.locator(".batch td:nth-child(2)").all_inner_texts()
    assert names == ["torn.png", *(f"x{number}.png" for number in range(19))]
    page.get_by_role("button", name="Probability").click()
    assert page.locator(".batch td:nth-child(2)").last.inner_text() == "torn.png"
    # The keyboard goes through the list, opens an X-ray, and goes on to the next and back.
    rows = page.locator(".batch .open")
    rows.first.focus()
    page.keyboard.press("ArrowDown")
    name = page.evaluate("document.activeElement.textContent")
    assert name == rows.nth(1).inner_text()
    page.keyboard.press("Enter")
    page.locator("#batch-bar .bar").get_by_text(f"{name}: 2 of 19").wait_for(timeout=SLOW)
    page.locator("#answer .decision").wait_for(timeout=SLOW)
    first = page.locator("#viewer .xray").get_attribute("src")
    page.wait_for_function("document.activeElement.dataset.step == '1'", timeout=SLOW)
    page.keyboard.press("Enter")
    page.locator("#batch-bar .bar").get_by_text(": 3 of 19").wait_for(timeout=SLOW)
    page.wait_for_function(
        "first => document.querySelector('#viewer .xray')?.src != first", arg=first, timeout=SLOW
    )
    page.keyboard.press("Escape")
    name = rows.nth(2).inner_text()
    page.wait_for_function(
        "name => document.activeElement.textContent == name", arg=name, timeout=SLOW
    )
    # An upload ends it.
    open_tab(page, "X-ray")
    upload(page, files[0])
    page.locator("#batch-bar .bar").wait_for(state="hidden", timeout=SLOW)


def test_page_reports_an_unreadable_file_and_goes_on(page, xray, tmp_path):
    text = tmp_path / "scan.jpeg"
    text.write_text("no image")
    page.locator("#viewer .tools button").first.wait_for(timeout=SLOW)
    page.locator("#viewer input.file").set_input_files(text)
    page.get_by_text("scan.jpeg is not an image that can be read").wait_for(timeout=SLOW)
    assert page.locator("#viewer .welcome").is_visible()
    fault = page.locator("#answer .fault").bounding_box()  # on a phone below the examples
    assert 0 <= fault["y"] and fault["y"] + fault["height"] <= page.viewport_size["height"]
    assert upload(page, xray)


@pytest.mark.slow
def test_about_says_the_limits_first(page):
    open_tab(page, "About")
    page.get_by_role("heading", name="Limits").wait_for(timeout=SLOW)
    text = page.locator("body").inner_text()
    assert text.index("Limits") < text.index("Measured") < text.index("How to cite")


@pytest.mark.slow
def test_keyboard_alone_reaches_the_tools_and_the_tabs(page, xray):
    upload(page, xray)
    page.locator("#viewer .stage").focus()
    reached = set()
    for _ in range(16):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.dataset.do || ''"))
    tools = {"choose", "preset", "invert", "pan", "out", "in", "fit", "save", "full"}
    assert tools <= reached
    if page.viewport_size["width"] > 400:
        assert {"why", "hide", "opacity", "pdf"} <= reached
        page.get_by_role("tab", name="X-ray").focus()
        page.keyboard.press("ArrowRight")
        assert page.evaluate("document.activeElement.textContent").strip() == "Batch"


@pytest.mark.slow
def test_examples_of_the_default_model_mean_what_they_are_called(browser, tmp_path):
    from conftest import find_free_port, serve_app

    from pneumonia_hf.models.model_folder import DEFAULT_MODEL

    model = shutil.copytree(DEFAULT_MODEL, tmp_path / "model")  # the log is written beside it
    with serve_app(model, find_free_port()) as url:
        page = browser.new_page()
        page.goto(url)
        examples = page.locator("#viewer .examples button")
        examples.nth(4).wait_for(timeout=SLOW)
        for number, name, decisions in (
            (0, "No pneumonia", {"NORMAL"}),
            (1, "Pneumonia", {"PNEUMONIA", "REFER"}),
            (2, "Another disease", {"NORMAL", "PNEUMONIA", "REFER"}),
            (3, "Side view", {"REFUSED"}),
        ):
            examples.nth(number).dispatch_event("click")
            wait_for_name(page, name)
            assert page.locator("#answer .decision").get_attribute("data-decision") in decisions
        assert "side view" in page.locator("#answer .warnings").inner_text()
        assert page.get_by_role("button", name="Why?").is_disabled()
        # On a phone a table of About keeps its words whole, and the footer begins with a word.
        page.set_viewport_size({"width": 360, "height": 800})
        open_tab(page, "About")
        cells = page.locator("#about td")
        cells.first.wait_for(timeout=SLOW)
        assert min(cells.nth(at).bounding_box()["width"] for at in range(cells.count())) > 90
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        assert re.match(r"\w", page.locator("footer").inner_text().strip())
        page.close()
