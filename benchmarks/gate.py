"""Count what the input gate of a model refers and refuses: X-rays, other images, changed X-rays.

python benchmarks/gate.py --data_dir DATA --split test [--model runs/NAME] \
    [--other_xrays adults=ADULTS]

Other images are the sample images of scikit-image and scikit-learn, drawn images, and the DICOM
test files of pydicom (and of pydicom-data, if it is installed) that show no chest. Prints one
table.
"""

import logging
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageOps

from pneumonia_hf.cli import check_inputs, make_parser, run_script
from pneumonia_hf.imaging.xray import Xray

CHEST = "RG1_"  # how the names of pydicom's test files of a chest radiograph begin
# Of skimage.data, those that come with the package: photographs, textures, microscopy, pages.
SAMPLES = (
    "astronaut brick camera cat cell checkerboard clock coffee coins colorwheel grass gravel horse "
    "hubble_deep_field immunohistochemistry logo microaneurysms moon page retina rocket text"
).split()
CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "mirrored": ImageOps.mirror,
    "gray levels inverted": ImageOps.invert,
    "flipped top to bottom": ImageOps.flip,
    "rotated by 90 degrees": lambda image: image.rotate(90, expand=True),
}


def main() -> None:
    """Print a row for each kind of images."""
    parser = make_parser(__doc__)
    parser.add_argument("--model", help="Model folder or Hub id; default: the default model.")
    parser.add_argument("--data_dir", required=True, help="Data of the training kind.")
    parser.add_argument("--split", help="Of --data_dir: a folder, or the model's own split.")
    parser.add_argument(
        "--other_xrays", nargs="*", default=[], help="Further sources, each [NAME=][KIND:]WHERE."
    )
    parser.add_argument("--images", type=int, default=300, help="Of those that are changed.")
    options = parser.parse_args()

    from pneumonia_hf.data.sources import parse_source
    from pneumonia_hf.evaluation.choose_images import choose_split
    from pneumonia_hf.inference.predictor import Predictor
    from pneumonia_hf.models.model_folder import DEFAULT_MODEL

    sources = [parse_source(text) for text in (options.data_dir, *options.other_xrays)]
    folders = [one.where for one in sources if one.is_folder]
    check_inputs([options.model] if options.model else [], folders)
    warnings.simplefilter("ignore")  # of broken test files
    logging.disable(logging.ERROR)
    predictor = Predictor.from_pretrained(options.model or DEFAULT_MODEL)
    print(f"{predictor.name}: share of the images\n")
    print("| images | number | unlike the training images (REFER) | REFUSED | of other REFER |")
    print("|---|---|---|---|---|")
    split, data = choose_split([options.data_dir], options.split, predictor)
    xrays = list(read(data))
    show(predictor, f"X-rays of {sources[0].name}, {split}", xrays)
    rows = np.random.default_rng(13).permutation(len(xrays))[: options.images]
    for name, change in CHANGES.items():
        show(predictor, f"{len(rows)} of these, {name}", (change(xrays[row].image) for row in rows))
    for source, text in zip(sources[1:], options.other_xrays, strict=True):
        _, data = choose_split([text], None, predictor)
        show(predictor, f"X-rays of {source.name}", read(data))
    show(predictor, "sample images of scikit-image and scikit-learn", find_samples())
    show(predictor, "drawn images", draw_images())
    for title, chest in (("no chest X-ray", False), ("a chest X-ray", True)):
        show(predictor, f"DICOM test files of pydicom that show {title}", find_dicom(chest))


def show(predictor, title: str, xrays: Iterable[Xray | Image.Image]) -> None:
    """Print the row of these images."""
    found = Counter()
    for xray in xrays:
        one = predictor.predict(xray)
        refused = one.decision == "REFUSED"
        unlike = not refused and (one.distance or 0) >= 1
        found["refused"] += refused
        found["unlike"] += unlike
        found["referred"] += one.decision == "REFER" and not unlike
        found["all"] += 1
    count = found["all"]
    cells = [f"{found[name] / max(1, count):.1%}" for name in ("unlike", "refused", "referred")]
    print(f"| {title} | {count} | {' | '.join(cells)} |", flush=True)


def read(data) -> Iterator[Xray]:
    """Yield the images of a dataset."""
    from pneumonia_hf import open_xray
    from pneumonia_hf.data.sources import open_images

    return (open_xray(source, name) for name, source in open_images(data))


def find_samples() -> Iterator[Xray]:
    """Yield the sample images that are installed with scikit-image and scikit-learn."""
    from skimage import data
    from sklearn.datasets import load_sample_images

    from pneumonia_hf import open_xray

    samples = [*load_sample_images().images, *(getattr(data, name)() for name in SAMPLES)]
    with tempfile.TemporaryDirectory() as folder:
        for number, array in enumerate(samples):
            array = array * np.uint8(255) if array.dtype == bool else array
            path = Path(folder) / f"{number}.png"
            Image.fromarray(array).save(path)
            yield open_xray(path)


def draw_images(count: int = 40, side: int = 512) -> Iterator[Image.Image]:
    """Yield images of noise, one gray level, gradients, a chessboard, shapes and text, in turn."""
    random = np.random.default_rng(13)
    y, x = np.mgrid[:side, :side]
    for number in range(count):
        kind, image = number % 7, Image.new("L", (side, side), int(random.integers(256)))
        draw = ImageDraw.Draw(image)
        if kind == 0:
            image = Image.fromarray(random.integers(0, 256, (side, side), np.uint8))
        elif kind == 2:
            a, b = random.normal(size=2)
            ramp = a * x + b * y
            scaled = (ramp - ramp.min()) / np.ptp(ramp) * 255
            image = Image.fromarray(scaled.astype(np.uint8))
        elif kind == 3:
            cell = int(random.integers(8, 64))
            image = Image.fromarray(((x // cell + y // cell) % 2 * 255).astype(np.uint8))
        elif kind in (4, 5):
            shape = draw.ellipse if kind == 4 else draw.rectangle
            for _ in range(12):
                left, top, width, height = (int(one) for one in random.integers(0, side // 2, 4))
                shape((left, top, left + width, top + height), fill=int(random.integers(256)))
        elif kind == 6:
            for line in range(20):
                words = " ".join("".join(random.choice(list("etaoin"), 5)) for _ in range(12))
                draw.text((8, 24 * line + 8), words, fill=int(random.integers(256)))
        yield image


def find_dicom(chest: bool) -> Iterator[Xray]:
    """Yield pydicom's readable test files that show a chest X-ray, or that do not, once each.

    Most of them are several encodings of one image.
    """
    import imagehash
    from pydicom.data import get_testdata_files

    from pneumonia_hf import open_xray
    from pneumonia_hf.errors import XrayError

    seen = set()
    for path in sorted(map(Path, get_testdata_files("*.dcm")), key=lambda one: one.name):
        if path.name.startswith(CHEST) != chest:
            continue
        try:
            xray = open_xray(path)
        except XrayError:
            continue  # no image, broken on purpose, or of an unreadable kind
        if (looks := imagehash.phash(xray.image)) not in seen:
            seen.add(looks)
            yield xray


if __name__ == "__main__":
    run_script(main)
