import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import rename_classes, save_tiny_body, train_tiny
from PIL import Image
from transformers import TrainerCallback

from pneumonia_hf.data.file_hashes import to_hex
from pneumonia_hf.data.load import DataConfig
from pneumonia_hf.errors import UserError
from pneumonia_hf.imaging.preprocess import make_processor
from pneumonia_hf.training.arguments import XrayTrainingArguments
from pneumonia_hf.training.distillation import load_teacher, load_unlabelled
from pneumonia_hf.training.losses import Targets


def hash_file(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


@pytest.fixture(scope="module")
def body(tmp_path_factory):
    return save_tiny_body("convnextv2-tiny", tmp_path_factory.mktemp("body"))


@pytest.fixture(scope="module")
def teacher(tmp_path_factory, xray_folder, body):
    folder = tmp_path_factory.mktemp("teacher") / "run"
    return train_tiny("convnextv2-tiny", body, xray_folder, folder, num_train_epochs=1)


def test_teacher_scores_the_pixels_of_the_student_as_it_is_served(
    tmp_path, xray_folder, body, monkeypatch
):
    """A teacher of another family, size and class order."""
    from pneumonia_hf.imaging.preprocess import resize
    from pneumonia_hf.imaging.read import read_xray
    from pneumonia_hf.inference.predictor import Predictor
    from pneumonia_hf.training import distillation

    monkeypatch.setattr(distillation, "fast_precision", lambda device: "fp32")
    vit = save_tiny_body("vit-base", tmp_path / "vit")
    folder = train_tiny("vit-base", vit, xray_folder, tmp_path / "teacher")
    images = [read_xray(path) for path in sorted((xray_folder / "NORMAL").iterdir())[:4]]
    expected = Predictor.from_pretrained(folder).log_odds(images)
    teacher = load_teacher(str(folder), {})
    logits = teacher.logits(resize(images, teacher.processor))
    assert (logits[:, 1] - logits[:, 0]).numpy() == pytest.approx(expected, abs=1e-4)

    # Where the hardware computes bf16, so does the teacher: nearly the same, in float32.
    monkeypatch.setattr(distillation, "fast_precision", lambda device: "bf16")
    half = teacher.logits(resize(images, teacher.processor))
    assert half.dtype == torch.float32 and not torch.equal(half, logits)
    assert (half - logits).abs().max() < 0.1
    monkeypatch.setattr(distillation, "fast_precision", lambda device: "fp32")

    # The same model with its classes in the other order gives the same logits.
    rename_classes(folder, "Opacity", "None")
    with pytest.raises(UserError, match="as --teacher_positive_label"):
        load_teacher(str(folder), {})
    turned = load_teacher(str(folder), {}, "opacity").logits(resize(images, teacher.processor))
    assert torch.equal(turned, -logits)


@pytest.mark.slow
def test_distillation_brings_the_student_nearer_to_its_teacher(tmp_path, xray_folder, body):
    from pneumonia_hf.imaging.read import read_xray
    from pneumonia_hf.inference.predictor import Predictor

    teacher = train_tiny("convnextv2-tiny", body, xray_folder, tmp_path / "teacher")
    images = [read_xray(path) for path in sorted(xray_folder.rglob("*.png"))]
    settings = {"num_train_epochs": 3, "augment": 0.0, "imbalance": "none",
                "early_stopping_patience": 0, "load_best_model_at_end": False}  # fmt: skip
    cnn = save_tiny_body("xray-cnn", tmp_path / "cnn")

    def distance(name: str, **changes) -> float:
        folder = train_tiny("xray-cnn", cnn, xray_folder, tmp_path / name, **settings, **changes)
        config = json.loads((folder / "config.json").read_text())["pneumonia_hf"]
        ours = Predictor.from_pretrained(folder).log_odds(images) * config["temperature"]
        theirs = Predictor.from_pretrained(teacher).log_odds(images)
        return float(np.abs(ours - theirs).mean())

    taught = distance("taught", teacher=str(teacher), distil_weight=1.0)
    assert taught < distance("alone")


@pytest.mark.slow
def test_unlabelled_images_join_each_batch_and_the_manifest_counts_them(
    tmp_path, xray_folder, body, teacher
):
    hospital = tmp_path / "hospital"
    shutil.copytree(xray_folder / "NORMAL", hospital / "ward" / "PNEUMONIA")  # says nothing
    (hospital / "note.txt").write_text("no image")
    for number in range(3):  # new images, unlike those of training
        pixels = np.full((40, 40), 60 * number, np.uint8)
        pixels[10:30, 10:30] += 60
        pixels += np.arange(40, dtype=np.uint8)  # of two levels it would be a mask
        Image.fromarray(pixels).save(hospital / f"{number}.png")
    seen = []

    class Watch(TrainerCallback):
        def on_step_begin(self, args, state, control, model=None, **kwargs):
            if not seen:
                model.register_forward_hook(lambda module, args, kwargs, out: seen.append(
                    (module.training, len(kwargs["pixel_values"]))), with_kwargs=True)  # fmt: skip
                seen.append(None)

    student = train_tiny("convnextv2-tiny", body, xray_folder, tmp_path / "student",
                         num_train_epochs=1, per_device_train_batch_size=4, max_steps=2,
                         teacher=str(teacher), unlabelled=[str(hospital)],
                         unlabelled_share=1.5, callbacks=(Watch(),))  # fmt: skip
    assert [size for training, size in filter(None, seen) if training] == [10, 10]
    run = json.loads((student / "run.json").read_text())
    held_out = {*run["hashes"]["validation"], *run["hashes"]["test"]}
    files = [path for path in hospital.rglob("*.png") if hash_file(path) not in held_out]
    assert 3 < len(files) < len(list(hospital.rglob("*.png")))  # some are held out
    assert sorted(run["hashes"]["unlabelled"]) == sorted(map(hash_file, files))
    assert run["data"]["unlabelled"] == {"folders": ["hospital"], "images": len(files)}
    assert str(tmp_path) not in (student / "run.json").read_text()
    assert f"{len(files)} images without labels" in (student / "README.md").read_text()


def test_unlabelled_images_have_no_share_of_any_class(teacher):

    pixels = torch.randint(0, 256, (5, 1, 40, 40)).float()
    classes = torch.tensor([[1.0, 0.0], [0.2, 0.8]])
    loaded = load_teacher(str(teacher), {})
    targets = loaded.make_targets(pixels, classes)
    assert torch.equal(targets.classes[:2], classes) and not targets.classes[2:].any()
    assert targets.teacher_logits.shape == (5, 2)
    assert torch.equal(loaded.add_unlabelled(pixels), pixels)  # there are none


@pytest.mark.parametrize("imbalance", ["weights", "none"])
def test_loss_of_an_unlabelled_image_is_the_teachers_alone(imbalance):
    from types import SimpleNamespace

    from pneumonia_hf.training.losses import XrayLoss

    settings = {"imbalance": imbalance, "teacher": "x", "distil_weight": 0.5,
                "distil_temperature": 1.0, "label_smoothing_factor": 0.1,
                "box_weight": 0.0}  # fmt: skip
    loss = XrayLoss(np.array([0, 0, 0, 1]), SimpleNamespace(**settings))
    logits, theirs = torch.tensor([[0.3, 1.2]]), torch.tensor([[2.0, -1.0]])
    found = loss(SimpleNamespace(logits=logits), Targets(torch.zeros(1, 2), theirs))
    p, q = theirs.softmax(1), logits.softmax(1)
    assert found.item() == pytest.approx(0.5 * (p * (p / q).log()).sum().item(), rel=1e-5)
    # Of three classes the student learns P(PNEUMONIA).
    loss = XrayLoss(np.array([0, 0, 1, 2]), SimpleNamespace(**settings))
    logits = torch.tensor([[0.3, 1.2, 0.8]])
    found = loss(SimpleNamespace(logits=logits), Targets(torch.zeros(1, 3), theirs))
    ill = logits.softmax(1)[:, 1:2]
    q = torch.cat([1 - ill, ill], dim=1)
    assert found.item() == pytest.approx(0.5 * (p * (p / q).log()).sum().item(), rel=1e-5)


def test_unlabelled_images_need_a_teacher_and_a_folder(tmp_path, xray_folder, body, teacher):
    with pytest.raises(UserError, match="give a --teacher"):
        XrayTrainingArguments(output_dir=str(tmp_path), unlabelled=["x"])
    with pytest.raises(UserError, match="nowhere is no folder; check --unlabelled"):
        train_tiny("convnextv2-tiny", body, xray_folder, tmp_path / "run", teacher=str(teacher),
                   unlabelled=["nowhere"])  # fmt: skip
    run = json.loads((teacher / "run.json").read_text())
    copied = tmp_path / "held out"
    copied.mkdir()
    for path in xray_folder.rglob("*.png"):
        if hash_file(path) in run["hashes"]["test"]:
            shutil.copy(path, copied)
    with pytest.raises(UserError, match="No --unlabelled image is left"):
        train_tiny("convnextv2-tiny", body, xray_folder, tmp_path / "run", teacher=str(teacher),
                   unlabelled=[str(copied)])  # fmt: skip


def test_teacher_that_has_seen_the_validation_images_is_refused(
    tmp_path, xray_folder, body, teacher
):
    teacher = Path(shutil.copytree(teacher, tmp_path / "teacher"))
    run = json.loads((teacher / "run.json").read_text())
    run["hashes"]["train"] += run["hashes"]["validation"][:3]
    (teacher / "run.json").write_text(json.dumps(run))
    with pytest.raises(UserError, match="was made with 3 images of the validation split"):
        train_tiny("convnextv2-tiny", body, xray_folder, tmp_path / "run", teacher=str(teacher))
    # A student may be chosen on the teacher's validation images, but not tested on them.
    chosen_on = run["hashes"]["validation"][3:]
    load_teacher(str(teacher), {"validation": chosen_on})
    with pytest.raises(UserError, match="images of the test split"):
        load_teacher(str(teacher), {"test": chosen_on})


def test_listed_test_images_and_excluded_ones_are_not_learned_without_labels(tmp_path, xray_folder):
    files = sorted((xray_folder / "NORMAL").iterdir())[:5]
    for name, file in zip(("test", "excluded"), files, strict=False):
        (tmp_path / name).write_text(hash_file(file))
    lists = {"test_images": str(tmp_path / "test"), "exclude_images": str(tmp_path / "excluded")}
    (tmp_path / "hospital").mkdir()
    for file in files:
        shutil.copy(file, tmp_path / "hospital")
    folders, processor = [str(tmp_path / "hospital")], make_processor(32, (0.5,) * 3, (0.5,) * 3)
    config = DataConfig([str(xray_folder)], **lists)
    found = load_unlabelled(folders, processor, config, {hash_file(files[2])})
    assert sorted(to_hex(found.hashes)) == sorted(map(hash_file, files[3:]))
