"""The viewer's JavaScript in a real browser, with a server that the test plays; no model."""

import base64
import io

import browsers
import pytest
from browsers import needs_browser
from PIL import Image

from pneumonia_hf.demo.page_files import read_page
from pneumonia_hf.demo.viewer import PARTS

pytestmark = needs_browser
browser = browsers.browser
PROPS = {
    "examples": [{"title": "Example", "note": "simulated", "image": "data:,"}],
    "phantom": "data:,",
    "film": [340, 310],
    "kept": 120,
    "methods": [
        {"method": "cam", "title": "Class activation map"},
        {"method": "occlusion", "title": "Occlusion"},
    ],
    "offered": "cam",
    "fills": ["black", "gray"],
}
START = """
([script, props]) => {
  window.sent = [];
  const upload = async (file) => {
    if (window.refused) throw new Error("413");
    return {path: `/uploads/${file.name}`};
  };
  Function("element", "trigger", "props", "server", "upload", "watch", script)(
    document.querySelector("#viewer"), (kind, data) => sent.push({kind, ...data}), props, {},
    upload, () => {});
}
"""


@pytest.fixture
def page(browser):
    page = browser.new_page(viewport={"width": 1200, "height": 800})
    faults = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    style, content = read_page("page.css"), read_page("viewer.html")
    page.set_content(f"<style>{style}</style><div id=viewer>{content}</div>")
    page.evaluate(START, [read_page(*(f"{one}.js" for one in PARTS)), PROPS])
    yield page
    assert faults == []
    page.close()


def draw(width: int) -> str:
    buffer = io.BytesIO()
    Image.new("L", (width, 100), 90).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def requests(page, kind: str) -> list[dict]:
    return [one for one in page.evaluate("sent") if one["kind"] == kind]


def answer(page, kind: str, **values) -> None:
    page.evaluate(
        "detail => document.dispatchEvent(new CustomEvent('xray-answer', {detail}))",
        {"kind": kind, **values},
    )


def answer_image(page, number: int, width: int, **values) -> None:
    text = f"<p class=decision>{width}</p>"
    found = {"answer": text, "image": draw(width), "width": width, "height": 100, "scored": True}
    answer(page, "analyse", number=number, **found | values)


def hand_over(page, name: str, event: str) -> None:
    """Drop or paste a file on the viewer."""
    page.evaluate(
        """async ([name, event]) => {
          const files = new DataTransfer();
          files.items.add(new File(["x"], name, {type: "image/png"}));
          document.querySelector("#viewer .stage").dispatchEvent(event === "drop"
            ? new DragEvent("drop", {dataTransfer: files, bubbles: true, cancelable: true})
            : new ClipboardEvent("paste", {clipboardData: files, bubbles: true}));
          await new Promise((done) => setTimeout(done));
        }""",
        [name, event],
    )


def open_image(page, width: int = 120) -> int:
    """Show an X-ray, and return the number of its request."""
    hand_over(page, "a.png", "drop")
    number = requests(page, "analyse")[-1]["number"]
    answer_image(page, number, width)
    return number


def name_of(page) -> str:
    return page.locator("#viewer .corner.name").inner_text()


def width_of(page) -> int:
    return page.locator("#viewer .xray").evaluate(
        "async one => (await one.decode(), one.naturalWidth)"
    )


def test_an_xray_can_be_replaced_at_any_time_and_its_name_goes_with_it(page):
    open_image(page)
    assert (name_of(page), width_of(page)) == ("a.png", 120)
    for width, (name, event) in enumerate((("b.png", "drop"), ("c.png", "paste")), 200):
        hand_over(page, name, event)
        sent = requests(page, "analyse")[-1]
        assert sent["path"] == f"/uploads/{name}"
        assert name_of(page) != name  # until its answer has come
        answer_image(page, sent["number"], width)
        assert (name_of(page), width_of(page)) == (name, width)
    # An example after a file whose answer is late: the later choice is shown, with its name.
    hand_over(page, "late.png", "drop")
    page.locator(".examples button").first.dispatch_event("click")
    answer_image(page, requests(page, "analyse")[-1]["number"], 300)
    assert name_of(page) == "c.png"  # the answer to late.png is dropped
    last = requests(page, "analyse")[-1]
    assert last["example"] == 0 and last["path"] is None
    answer_image(page, last["number"], 400)
    assert (name_of(page), width_of(page)) == ("Example · simulated", 400)
    # What cannot be read leaves no other image beside its error.
    hand_over(page, "torn.png", "drop")
    answer(page, "analyse", number=requests(page, "analyse")[-1]["number"], answer="<p>Torn.</p>")
    assert page.locator("#answer").inner_text() == "Torn."
    assert page.locator(".welcome").is_visible() and name_of(page) == ""


def answer_maps(page, *methods: str) -> None:
    maps = [{"method": one, "title": one, "source": draw(20)} for one in methods]
    answer(page, "explain", number=requests(page, "explain")[-1]["number"], maps=maps)


def shown_maps(page) -> list[str]:
    return page.locator("#viewer .map").evaluate_all(
        "all => all.map(one => one.alt.split(' ').pop())"
    )


def test_the_latest_map_wins_and_a_cancelled_one_does_not_come(page):
    of = open_image(page)
    page.get_by_role("button", name="Why?").click()
    choose = {
        name: page.locator(f".methods [data-method={name}]:not([data-second])")
        for name in ("cam", "occlusion")
    }
    for name in ("occlusion", "cam", "occlusion"):
        choose[name].click()
    assert [one["methods"] for one in requests(page, "explain")] == [["cam"]]  # one at a time
    assert page.locator(".wait").is_visible()
    answer_maps(page, "cam")
    assert shown_maps(page) == []  # no longer wanted
    assert [one["methods"] for one in requests(page, "explain")] == [["cam"], ["occlusion"]]
    answer_maps(page, "occlusion")
    assert shown_maps(page) == ["occlusion"] and not page.locator(".wait").is_visible()
    assert choose["occlusion"].get_attribute("aria-pressed") == "true"
    assert requests(page, "explain")[-1]["of"] == of
    # The report has the map that is shown, also while another is awaited.
    choose["cam"].click()
    page.get_by_role("button", name="Report as PDF").click()
    assert requests(page, "report")[0]["methods"] == ["occlusion"]
    assert requests(page, "stop")[-1]["number"] != requests(page, "explain")[-1]["number"]
    page.get_by_role("button", name="Cancel").click()
    # The server stops what is no longer wanted.
    assert requests(page, "stop")[-1]["number"] == requests(page, "explain")[-1]["number"]
    answer_maps(page, "cam")
    assert shown_maps(page) == ["occlusion"]
    assert choose["occlusion"].get_attribute("aria-pressed") == "true"
    # A request that fails ends the wait, and the next one is sent.
    choose["cam"].click()
    answer(page, "explain")
    assert not page.locator(".wait").is_visible() and shown_maps(page) == ["occlusion"]
    page.get_by_role("button", name="Compare with Class").click()
    answer_maps(page, "occlusion", "cam")
    assert shown_maps(page) == ["occlusion", "cam"]
    page.get_by_label("Divider between").fill("20")
    clips = page.locator(".map").evaluate_all("all => all.map(one => one.style.clipPath)")
    assert "80%" in clips[0] and "20%" in clips[1]
    # No map of the X-ray before lies over a new one.
    open_image(page, 140)
    assert shown_maps(page) == []


def test_gestures_and_keys_change_the_view(page):
    open_image(page)
    levels = page.locator(".levels")
    before = levels.inner_text()
    assert before == "W 255 L 128 (as read) · 100%"
    stage = page.locator(".stage")
    box = stage.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2

    def drag(right: int, down: int) -> None:
        page.mouse.move(x, y)
        page.mouse.down()
        page.mouse.move(x + right, y + down, steps=3)
        page.mouse.up()

    drag(30, 20)
    assert levels.inner_text() == "W 285 L 148 · 100%"
    page.mouse.wheel(0, -100)
    page.wait_for_function("() => /· 122%/.test(document.querySelector('.levels').textContent)")

    def left_of_film() -> float:
        return page.locator(".film").bounding_box()["x"]

    left = left_of_film()
    page.keyboard.down("Shift")
    drag(10, 0)
    page.keyboard.up("Shift")
    assert left_of_film() == pytest.approx(left + 10)
    page.keyboard.press("ArrowRight")
    assert left_of_film() == pytest.approx(left - 30)
    assert "W 285 L 148" in levels.inner_text()
    page.keyboard.press("i")
    page.keyboard.press("p")
    assert "W 160 L 80 (dark lungs) inverted" in levels.inner_text()
    page.mouse.dblclick(x, y)
    assert levels.inner_text() == before
    page.keyboard.press("ArrowRight")
    assert levels.inner_text() == "W 260 L 128 · 100%"
    page.keyboard.press("f")
    assert levels.inner_text() == before
    with page.expect_download() as saved:
        page.get_by_role("button", name="Save the image").click()
    assert saved.value.suggested_filename == "a.png"
    # Of a zip file in a batch, with its folders.
    page.evaluate(
        "detail => document.dispatchEvent(new CustomEvent('xray-open', {detail}))",
        {"row": 1, "name": "1.2.840/IM1"},
    )
    answer_image(page, requests(page, "analyse")[-1]["number"], 120)
    with page.expect_download() as saved:
        page.get_by_role("button", name="Save the image").click()
    assert saved.value.suggested_filename == "1.2.840-IM1.png"


def test_arrow_keys_move_what_is_hidden_and_the_border(page):
    open_image(page)
    # A map is of the whole X-ray: it is not laid over one with hidden parts.
    hide, why = (page.locator(f".modes [data-do={one}]") for one in ("hide", "why"))
    assert why.is_enabled()
    hide.click()
    assert why.is_disabled()

    def next_mask(act) -> dict:
        """Return the request that follows, and answer it."""
        act()
        sent = requests(page, "mask")[-1]
        found = {"image": draw(120), "text": "<div class=scale></div>", "before": 0.4}
        answer(page, "mask", number=sent["number"], **found)
        return sent

    next_mask(lambda: None)
    assert page.evaluate("document.activeElement.className") == "stage"
    boxes = [
        next_mask(lambda key=key: page.keyboard.press(key))["box"]
        for key in ("ArrowLeft", "ArrowLeft", "Shift+ArrowDown")
    ]
    assert boxes[1] == pytest.approx([0.38, 0.4, 0.58, 0.6])
    assert boxes[2] == pytest.approx([0.38, 0.4, 0.58, 0.62])
    page.get_by_label("Hidden border").focus()
    assert next_mask(lambda: page.keyboard.press("ArrowRight"))["border"] == 0.01
    assert page.locator(".point.before").get_attribute("style") == "left:40%"
    # The edge of what the border hides can be drawn by the mouse, too.
    film = page.locator(".film").bounding_box()
    x, y = film["x"] + film["width"] / 2, film["y"] + film["height"] / 2
    page.mouse.move(film["x"] + 0.01 * film["width"], y)
    page.mouse.down()
    page.mouse.move(film["x"] + 0.1 * film["width"], y, steps=2)
    page.mouse.up()
    next_mask(lambda: None)
    moved = next_mask(lambda: page.mouse.move(x, y))
    assert moved["border"] == pytest.approx(0.1, abs=0.01) and moved["box"] == boxes[2]
    assert page.get_by_label("Hidden border").input_value() == "10"
    next_mask(lambda: page.get_by_label("Hidden border").fill("1"))
    # Of moves that are faster than the answers, the last is asked for.
    for _ in range(5):
        page.keyboard.press("ArrowRight")
    assert requests(page, "mask")[-1]["border"] == 0.02
    next_mask(lambda: None)
    assert requests(page, "mask")[-1]["border"] == 0.06
    assert requests(page, "mask")[-1]["of"] == requests(page, "analyse")[-1]["number"]
    hide.click()
    assert why.is_enabled()


def test_an_opacity_follows_mouse_and_keys_and_its_map_waits_for_rest(page):
    page.locator(".examples [data-do=opacity]").click()

    def respond() -> dict:
        sent = requests(page, "simulate")[-1]
        found = {"image": draw(376), "width": 376, "height": 343, "normal": 0.1,
                 "text": "<div class=scale></div>"}  # fmt: skip
        answer(page, "simulate", number=sent["number"], **found)
        return sent

    def respond_with_map() -> dict:
        sent = requests(page, "attribute")[-1]
        maps = [{"method": "cam", "title": "cam", "source": draw(20)}]
        answer(page, "attribute", number=sent["number"], maps=maps)
        return sent

    first = respond()
    page.wait_for_function("sent.some(one => one.kind === 'attribute')")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("+")  # waits for the answer before
    respond_with_map()
    assert shown_maps(page) == []  # of the place before
    moved = respond()
    assert moved["x"] == pytest.approx(first["x"] + 0.01) and moved["diameter"] == 80
    page.wait_for_timeout(150)
    assert len(requests(page, "attribute")) == 1  # the hand has not come to rest
    grown = respond()
    assert grown["x"] == moved["x"] and grown["diameter"] == 84
    page.wait_for_function("sent.filter(one => one.kind === 'attribute').length === 2")
    assert respond_with_map()["diameter"] == 84
    assert shown_maps(page) == ["cam"]
    page.keyboard.press("-")
    assert shown_maps(page) == [] and respond()["diameter"] == 80
    box = page.locator(".film").bounding_box()
    page.mouse.click(box["x"] + 0.7 * box["width"], box["y"] + 0.4 * box["height"])
    clicked = respond()
    assert (clicked["x"], clicked["y"]) == pytest.approx((0.7, 0.4), abs=0.01)
    page.get_by_role("button", name="What if there were pneumonia?").last.click()
    assert page.locator(".welcome").is_visible()


def test_a_map_asked_for_while_a_file_is_read_does_not_come_over_it(page):
    open_image(page)
    hand_over(page, "b.png", "drop")
    page.evaluate("document.querySelector('.modes [data-do=why]').click()")
    number = requests(page, "analyse")[-1]["number"]
    answer_image(page, number, 200)
    answer_maps(page, "cam")  # of the X-ray before
    assert (name_of(page), shown_maps(page)) == ("b.png", [])


@pytest.mark.parametrize("ends", ["cancelled", "too large"])
def test_a_file_that_does_not_come_leaves_the_whole_x_ray(page, ends):
    open_image(page)
    page.get_by_role("button", name="What if I hide something?").click()
    number = requests(page, "mask")[-1]["number"]
    answer(page, "mask", number=number, image=draw(90), text="", before=0.4)
    assert width_of(page) == 90
    if ends == "too large":
        page.evaluate("window.refused = true")
    hand_over(page, "b.png", "drop")
    if ends == "cancelled":
        page.get_by_role("button", name="Cancel").click()
    else:
        assert "larger than this app allows" in page.locator("#answer").inner_text()
    assert (name_of(page), width_of(page)) == ("a.png", 120)
