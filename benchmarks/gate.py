"""Count what the input gate of a model refers and refuses: X-rays, other images, changed X-rays.

python benchmarks/gate.py --data_dir DATA --split test [--model runs/NAME] \
    [--other_xrays adults=ADULTS] [--negatives FOLDER ...] [--leave_out children=A adults=B]

With --leave_out the gate is fitted anew without each hospital of these sources in turn, and asked
about its X-rays. Of --negatives, such as side views or X-rays of hands, all should be refused.
Other images are the sample images of scikit-image and scikit-learn, drawn images, and the DICOM
test files of pydicom (and of pydicom-data, if it is installed) that show no chest. The simulated
side views are of the patient to whose other angles the gate is fitted, and two photographs of
scikit-learn are among those that it is fitted to. Prints one table.
"""

import logging
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageOps

from pneumonia_hf import open_xray
from pneumonia_hf.cli import check_inputs, make_parser, run_script
from pneumonia_hf.imaging.xray import Xray
from pneumonia_hf.inference.batch import find_inputs
from pneumonia_hf.reasons import REFUSING

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
    "rotated by 180 degrees": lambda image: image.rotate(180),
    "rotated by 90 degrees": lambda image: image.rotate(90, expand=True),
    "their lower third": lambda image: crop(image, 0, 0.67, 1, 1),
    "their upper third": lambda image: crop(image, 0, 0, 1, 0.33),
    "their left half": lambda image: crop(image, 0, 0, 0.5, 1),
    "without 10% at each side": lambda image: crop(image, 0.1, 0.1, 0.9, 0.9),
}


def crop(image: Image.Image, *window: float) -> Image.Image:
    """Return the window left, top, right, bottom, in shares of the sides."""
    return image.crop(tuple(round(a * b) for a, b in zip(window, image.size * 2, strict=True)))


def main() -> None:
    """Print a row for each kind of images."""
    parser = make_parser(__doc__)
    parser.add_argument("--model", help="Model folder or Hub id; default: the default model.")
    parser.add_argument("--data_dir", required=True, help="Data of the training kind.")
    parser.add_argument("--split", help="Of --data_dir: a folder, or the model's own split.")
    parser.add_argument(
        "--other_xrays", nargs="*", default=[], help="Further sources, each [NAME=][KIND:]WHERE."
    )
    parser.add_argument("--negatives", nargs="*", default=[], help="Folders of other images.")
    parser.add_argument(
        "--leave_out", nargs="*", default=[], help="Sources, each [NAME=][KIND:]WHERE."
    )
    parser.add_argument("--images", type=int, default=300, help="Of those that are changed.")
    options = parser.parse_args()

    from pneumonia_hf.data.sources import parse_source
    from pneumonia_hf.evaluation.choose_images import choose_split
    from pneumonia_hf.inference.predictor import Predictor
    from pneumonia_hf.models.model_folder import DEFAULT_MODEL

    sources = [parse_source(text) for text in (options.data_dir, *options.other_xrays)]
    folders = [one.where for one in sources if one.is_folder]
    check_inputs([options.model] if options.model else [], [*folders, *options.negatives])
    warnings.simplefilter("ignore")  # of broken test files
    logging.disable(logging.ERROR)
    predictor = Predictor.from_pretrained(options.model or DEFAULT_MODEL)
    print(f"{predictor.name}: share of the images\n")
    gate = predictor.networks[0].gate
    print("" if gate is None else f"{gate.limit_reason}\n")
    print("| images | number | REFUSED | why | unlike the training images (REFER) | other REFER |")
    print("|---|---|---|---|---|---|")
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
    for title, images in simulate():
        show(predictor, title, images)
    for folder in options.negatives:
        show(predictor, Path(folder).name, map(open_xray, find_inputs([folder])))
    if options.leave_out:
        leave_out(predictor, options.leave_out)


def show(predictor, title: str, xrays: Iterable[Xray | Image.Image]) -> None:
    """Print the row of these images."""
    found = Counter()
    for xray in xrays:
        one = predictor.predict(xray)
        refused = one.decision == "REFUSED"
        unlike = not refused and (one.distance or 0) >= 1
        found["refused"] += refused
        if refused:
            found[one.caveats[0].reason] += 1
        found["unlike"] += unlike
        found["referred"] += one.decision == "REFER" and not unlike
        found["all"] += 1
    count = found["all"]
    shares = {name: found[name] / max(1, count) for name in ("refused", "unlike", "referred")}
    why = (f"{reason.name.lower()} {found[reason]}" for reason in REFUSING if found[reason])
    cells = [title, count, f"{shares.pop('refused'):.2%}", ", ".join(sorted(why))]
    cells += [f"{share:.1%}" for share in shares.values()]
    print(f"| {' | '.join(map(str, cells))} |", flush=True)


def simulate() -> Iterator[tuple[str, list[Image.Image]]]:
    """Yield films of the phantom, and what they are: of the angles that the gate never saw."""
    from pneumonia_hf.evaluation.gate_images import HELD_OUT
    from pneumonia_hf.imaging import phantom

    exposures = (0.6, 0.8, 1, 1.3, 1.6)
    yield (
        "simulated side views of other angles than in training",
        [phantom.simulate_side_view(angle, one) for angle in HELD_OUT for one in exposures],
    )
    opacities = [[], *([phantom.Opacity(place, 60)] for place in phantom.ZONES.values())]
    yield (
        "simulated frontal X-rays, normal and with an opacity of 60 mm",
        [phantom.simulate(some, one)[0] for some in opacities for one in exposures],
    )


def leave_out(predictor, sources: list[str]) -> None:
    """Print a row for each hospital, by a gate that is fitted without it."""
    from pneumonia_hf.data.load import DataConfig, load_xrays
    from pneumonia_hf.evaluation.gate_fit import fit_gate, list_hospitals
    from pneumonia_hf.inference.network import Network
    from pneumonia_hf.inference.predictor import Predictor

    network, splits = predictor.network, load_xrays(DataConfig(sources))
    threshold = predictor.operating_point.threshold
    hospitals = {name: list_hospitals(data) for name, data in splits.items()}
    for hospital in np.unique(np.concatenate([*hospitals.values()])):
        rest, mine = (
            {name: d.select(np.flatnonzero((hospitals[name] == hospital) == is_mine))
             for name, d in splits.items()}
            for is_mine in (False, True)
        )  # fmt: skip
        if gate := fit_gate(network, rest["train"], rest["validation"], threshold):
            other = Predictor(Network(network.model, network.processor, gate=gate))
            images = (xray for data in mine.values() for xray in read(data))
            show(other, f"X-rays of {hospital}, by a gate that is fitted without it", images)


def read(data) -> Iterator[Xray]:
    """Yield the images of a dataset."""
    from pneumonia_hf.data.sources import open_images

    return (open_xray(source, name) for name, source in open_images(data))


def find_samples() -> Iterator[Xray]:
    """Yield the sample images that are installed with scikit-image and scikit-learn."""
    from skimage import data
    from sklearn.datasets import load_sample_images

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
