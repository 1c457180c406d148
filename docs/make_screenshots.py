"""Take the screenshots that the README shows, and draw the X-ray that its quickstart reads.

python docs/make_screenshots.py             # docs/app.png, docs/opacity.png, docs/drawn_xray.png
python docs/make_screenshots.py FOLDER      # and each state of the page at four sizes, to look at

Needs requirements-dev.txt and Chromium (BROWSER_PATH names another browser).
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter

FOLDER = Path(__file__).resolve().parent
XRAY = FOLDER / "drawn_xray.png"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
SIZES = ((1440, 900, "light"), (1280, 800, "dark"), (390, 844, "light"), (360, 740, "dark"))
WAIT = 120_000  # milliseconds


def draw_xray(side: int = 512, seed: int = 13) -> Image.Image:
    """Return a drawn frontal chest X-ray with opacities, most in the lower left of the image.

    Args:
        side: pixels of the square that is drawn; the result is cut out of it.
        seed: of the vessels and the noise.
    """
    y, x = np.mgrid[0 : 1 : side * 1j, 0 : 1 : side * 1j]

    def ellipse(cx: float, cy: float, rx: float, ry: float, blur: float) -> np.ndarray:
        inside = ((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2 < 1
        return gaussian_filter(inside.astype(float), blur * side)

    # The body, wider at the shoulders and darker outside; in gray levels of 0..255.
    torso = ellipse(0.5, 0.75, 0.47, 0.68, 0.02)
    neck = ellipse(0.5, 0.0, 0.12, 0.25, 0.02)
    body = np.clip(torso + neck, 0, 1)
    image = 12 + 140 * body

    # Two lungs, narrower at the apex; the left one (right in the image) makes place for the heart.
    lungs = np.zeros_like(image)
    for centre, lean in ((0.29, 1), (0.71, -1)):
        shape = ellipse(centre, 0.50, 0.165, 0.33, 0.012)
        shape *= 1 - ellipse(centre - 0.13 * lean, 0.13, 0.10, 0.14, 0.02)
        lungs += shape * (1 - ellipse(centre + 0.02 * lean, 0.93, 0.24, 0.17, 0.008))
    image -= 112 * lungs

    # Ribs: arcs that are bright over the lungs and faint beside them.
    for number in range(9):
        for centre, lean in ((0.29, 1), (0.71, -1)):
            bend = (x - centre) * lean
            line = 0.20 + 0.075 * number + 0.55 * (bend + 0.02) ** 2 - 0.22 * bend
            arc = np.exp(-(((y - line) / 0.011) ** 2)) * ellipse(centre, 0.5, 0.19, 0.36, 0.02)
            image += 26 * arc
    for lean in (1, -1):  # collar bones
        outwards = lean * (x - 0.5)
        line = 0.215 - 0.28 * outwards + 0.9 * (outwards - 0.2) ** 2
        bone = np.exp(-(((y - line) / 0.013) ** 2))
        image += 30 * body * bone * ellipse(0.5 + 0.2 * lean, 0.19, 0.17, 0.12, 0.012)

    # Spine, heart, the vessels of the hili.
    image += 46 * np.exp(-(((x - 0.5) / 0.035) ** 2)) * body
    image += 9 * np.exp(-(((x - 0.5) / 0.03) ** 2)) * np.sin(70 * y)
    heart = np.clip(
        ellipse(0.545, 0.64, 0.145, 0.17, 0.012) + ellipse(0.5, 0.42, 0.055, 0.2, 0.015), 0, 1
    )
    image += (185 - image) * 0.75 * heart
    generator = np.random.default_rng(seed)
    for side_of_hilum in (-1, 1):
        for _ in range(26):
            angle, length = generator.uniform(-1.2, 1.3), generator.uniform(0.05, 0.2)
            steps = np.linspace(0.03, length, 60)
            columns = 0.5 + side_of_hilum * (0.06 + steps * np.cos(angle))
            rows = 0.47 + steps * np.sin(angle) + 0.6 * steps**2
            vessel = np.zeros_like(image)
            vessel[(rows * side).astype(int), (columns * side).astype(int)] = steps / 0.2
            image += 75 * gaussian_filter(vessel, 0.005 * side) * lungs
        image += 45 * ellipse(0.5 + side_of_hilum * 0.1, 0.47, 0.045, 0.09, 0.03) * lungs

    # The opacities: most in the lower zone of the lung on the left.
    for cx, cy, radius, strength in (
        (0.27, 0.66, 0.09, 75),
        (0.34, 0.58, 0.08, 60),
        (0.22, 0.58, 0.06, 45),
        (0.76, 0.62, 0.07, 40),
    ):
        image += strength * ellipse(cx, cy, radius, radius * 0.8, 0.03) * lungs
    image += 5 * gaussian_filter(generator.normal(0, 1, image.shape), 0.004 * side) * 4
    image += generator.normal(0, 2.5, image.shape)
    drawn = np.clip(gaussian_filter(image, 0.8), 0, 255).astype(np.uint8)
    # Collimated as X-rays of children are.
    top, bottom, left, right = (round(share * side) for share in (0.12, 0.86, 0.08, 0.92))
    return Image.fromarray(drawn[top:bottom, left:right])


def open_answer(page, number: int = 1) -> None:
    """Analyse an example: the simulated patient with pneumonia."""
    page.locator("#viewer .examples button").nth(number).click()
    page.locator("#viewer .corner.name:not(:empty)").wait_for(timeout=WAIT)


def open_map(page) -> None:
    """Ask why the simulated pneumonia is scored as it is."""
    open_answer(page)
    unfold(page)
    page.locator("#viewer [data-do=why]").click()
    page.locator("#viewer .map").first.wait_for(timeout=WAIT)


def open_refusal(page) -> None:
    """Analyse the side view."""
    open_answer(page, 3)


def open_hidden(page) -> None:
    """Hide a part of the simulated pneumonia by the keyboard."""
    open_answer(page)
    unfold(page)
    page.locator("#viewer .modes [data-do=hide]").click()
    for key in ("ArrowRight", *["ArrowLeft"] * 5, *["Shift+ArrowDown"] * 3):
        page.keyboard.press(key)
    page.locator("#viewer .panel.hide .scale").wait_for(timeout=WAIT)


def open_opacity(page) -> None:
    """Make the opacity in the simulated patient grow."""
    page.locator("#viewer .examples [data-do=opacity]").click()
    page.locator("#viewer .panel.opacity .scale").wait_for(timeout=WAIT, state="attached")
    for _ in range(15):
        page.keyboard.press("+")
    page.locator("#viewer .map").first.wait_for(timeout=WAIT, state="attached")
    unfold(page)


def unfold(page) -> None:
    """Open what is folded on a phone."""
    page.evaluate("document.querySelector('#viewer .more').open = true")


STATES = {
    "start": lambda page: None,
    "answer": open_answer,
    "map": open_map,
    "refused": open_refusal,
    "hidden": open_hidden,
    "opacity": open_opacity,
    "batch": lambda page: page.get_by_role("tab", name="Batch").click(),
    "about": lambda page: page.get_by_role("tab", name="About").click(),
}


def take(browser, url: str, size: tuple[int, int, str], state: str, path: Path) -> None:
    """Save a state of the page at a size, as a PNG of 256 colours."""
    width, height, scheme = size
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
    page = context.new_page()
    page.goto(url)
    page.locator("#viewer .examples button").first.wait_for(timeout=WAIT)
    STATES[state](page)
    page.wait_for_timeout(2_500)  # until nothing moves
    page.screenshot(path=path)
    context.close()
    with Image.open(path) as image:
        shown = image.convert("RGB")
        # With this palette and dithered: gray levels keep their steps.
        shown.quantize(palette=shown.quantize(256, kmeans=1)).save(path, optimize=True)


def take_all(url: str, folder: Path | None) -> None:
    """Save the README's screenshots and, with a folder, each state at each size."""
    from playwright.sync_api import sync_playwright

    name = os.environ.get("BROWSER_PATH") or next(filter(None, map(shutil.which, BROWSERS)))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=name,
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
        )
        take(browser, url, SIZES[0], "map", FOLDER / "app.png")
        take(browser, url, SIZES[1], "opacity", FOLDER / "opacity.png")
        for size in SIZES if folder else ():
            for state in STATES:
                take(browser, url, size, state, folder / f"{state}-{size[0]}.png")
        browser.close()


def main(folder: Path | None) -> None:
    """Draw the X-ray, serve the default model, and save all images."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    from pneumonia_hf import Predictor, build_demo
    from pneumonia_hf.demo.app import launch_options
    from pneumonia_hf.demo.limits import Limits
    from pneumonia_hf.models.model_folder import DEFAULT_MODEL

    draw_xray().save(XRAY, optimize=True)
    demo = build_demo(Predictor.from_pretrained(DEFAULT_MODEL))
    # Gradio takes the first free port from 7860 on.
    _, url, _ = demo.launch(**launch_options(Limits()), prevent_thread_lock=True, quiet=True)
    try:
        take_all(url, folder)
    finally:
        demo.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]) if sys.argv[1:] else None)
