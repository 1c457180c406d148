"""The page in a real browser, with the app behind it."""

import re
import shutil

import browsers
import numpy as np
import pytest
from browsers import SLOW, needs_browser, open_more, open_tab, show_map, upload, wait_for_name
from helpers import draw_xray
from PIL import Image
from xray_files import make_dicom

pytestmark = needs_browser
browser, page, xray = browsers.browser, browsers.page, browsers.xray


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
    assert page.get_by_role("button", name="Why?").is_disabled()

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
    assert page.get_by_role("button", name="Why?").is_enabled()


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
    page.get_by_text("19 X-rays analysed, 1 file not readable.").wait_for(timeout=SLOW)
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
