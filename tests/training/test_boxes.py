import csv
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import TINY_SIZES, draw_folder, save_tiny_body, train_tiny

from pneumonia_hf.data.cache import decode
from pneumonia_hf.data.load import load_splits
from pneumonia_hf.errors import UserError
from pneumonia_hf.imaging.preprocess import make_processor
from pneumonia_hf.training import losses
from pneumonia_hf.training.boxes import KNOWN, MASKS, add_boxes

BOX = "0.5 0.5 0.5 0.5"


@pytest.fixture(scope="module")
def boxed_folder(tmp_path_factory):
    """A folder whose pneumonias have boxes, but for those of patient 3."""
    folder = draw_folder(tmp_path_factory.mktemp("boxed") / "data", patients=16)
    with (folder / "metadata.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["file_name", "patient_id", "boxes"])
        for path in sorted(folder.rglob("*.png")):
            is_boxed = path.parent.name == "PNEUMONIA" and "person3_" not in path.name
            name = path.relative_to(folder).as_posix()
            table.writerow([name, path.stem, BOX if is_boxed else ""])
    return folder


def read(sources):
    data = load_splits(sources)["all"]
    processor = make_processor(32, (0.5,) * 3, (0.5,) * 3)
    return decode(data, processor).pixels, data


def test_batches_have_the_masks_and_say_of_which_images_all_opacities_are_known(
    boxed_folder, tmp_path
):
    other = draw_folder(tmp_path / "other", patients=4, seed=5000)
    pixels, data = read([f"boxed={boxed_folder}", f"other={other}"])
    boxed = add_boxes(pixels, data)
    rows = np.arange(len(boxed))
    batch = boxed.__getitems__(rows)
    assert torch.equal(batch["pixel_values"], pixels.pixels(rows))
    for row, mask, known in zip(data, batch[MASKS], batch[KNOWN].tolist(), strict=True):
        has_box = bool(row["boxes"])
        assert mask.shape == (1, 32, 32) and mask.dtype == torch.uint8
        assert (mask[0, 16:, 16:] == 255).all() == has_box
        assert int((mask > 0).sum()) == (16 * 16 if has_box else 0)
        is_normal = row["source"] == "boxed" and row["label"] == 0
        assert known == (has_box or is_normal)
    as_other = replace(pixels, labels=np.where(pixels.labels == 0, 2, 1))
    assert np.array_equal(add_boxes(as_other, data).known, boxed.known)
    assert add_boxes(*read(str(other))) is None


def test_training_with_boxes_moves_the_activation_map_into_them(boxed_folder, tmp_path):
    from pneumonia_hf.imaging.read import read_xray
    from pneumonia_hf.inference.predictor import Predictor
    from pneumonia_hf.models.activation_map import class_activation_map

    body = save_tiny_body("convnextv2-tiny", tmp_path / "body")
    shares = {}
    for weight in (0.0, 3.0):
        run = train_tiny(
            "convnextv2-tiny", body, boxed_folder, tmp_path / f"run{weight:g}", augment=0.0,
            box_weight=weight, num_train_epochs=6,
        )  # fmt: skip
        network = Predictor.from_pretrained(run).network
        images = [read_xray(path) for path in sorted((boxed_folder / "PNEUMONIA").iterdir())]
        with torch.no_grad():
            found = class_activation_map(network.model, network.pixel_values(images)).values
        log_odds = found[:, 1] - found[:, 0]  # [N, h, w]
        side = log_odds.shape[-1]
        inside = torch.zeros(side, side, dtype=bool)
        inside[side // 2 :, side // 2 :] = True
        shares[weight] = float(log_odds[:, inside].mean() - log_odds[:, ~inside].mean())
    assert shares[3.0] > shares[0.0] + 0.5


def test_boxes_reach_the_loss_moved_as_the_image_is(boxed_folder, tmp_path, monkeypatch):
    seen = []
    original = losses.XrayLoss._of_boxes

    def of_boxes(self, boxes):
        seen.append(boxes)
        return original(self, boxes)

    monkeypatch.setattr(losses.XrayLoss, "_of_boxes", of_boxes)
    body = save_tiny_body("convnextv2-tiny", tmp_path / "body")
    train_tiny(
        "convnextv2-tiny", body, boxed_folder, tmp_path / "run", box_weight=1.0,
        num_train_epochs=1, teacher=None,
    )  # fmt: skip
    masks, known = seen[0].masks, seen[0].known
    side = TINY_SIZES["convnextv2-tiny"]
    assert masks.shape[1:] == (1, side, side) and 0 <= masks.min() and masks.max() <= 1
    filled = masks.flatten(1).any(1)
    assert filled.any() and (known | ~filled).all()
    assert len({mask.numpy().tobytes() for mask in masks[filled]}) > 1  # moved by augmentation


@pytest.mark.parametrize(("name", "changes", "words"), [
    ("vit-base", {}, "reads the mean over all positions"),
    ("convnextv2-tiny", {"mixup": 0.2}, "leave --mixup and --cutmix out"),
])  # fmt: skip
def test_boxes_are_refused_where_there_is_no_map(name, changes, words, boxed_folder, tmp_path):
    body = save_tiny_body(name, tmp_path / "body")
    with pytest.raises(UserError, match=words):
        train_tiny(name, body, boxed_folder, tmp_path / "run", box_weight=1.0, **changes)


def test_boxes_are_asked_for_where_no_image_has_one(xray_folder, tmp_path):
    body = save_tiny_body("convnextv2-tiny", tmp_path / "body")
    with pytest.raises(UserError, match="the column boxes, or leave --box_weight out"):
        train_tiny("convnextv2-tiny", body, xray_folder, tmp_path / "run", box_weight=1.0)
