import dataclasses

import numpy as np
import pytest
import torch
from helpers import TINY_CONFIGS, draw_xray
from PIL import Image
from transformers import AutoModelForImageClassification
from xray_files import make_dicom

from pneumonia_hf import Predictor, XrayError, read_xray
from pneumonia_hf.errors import UserError
from pneumonia_hf.imaging.input_checks import input_warnings
from pneumonia_hf.imaging.preprocess import make_processor, normalise, resize
from pneumonia_hf.inference.network import CONFIG_KEY, Network
from pneumonia_hf.inference.tta import (
    TTA_MISSED,
    TTA_ON,
    TTA_STRANGE,
    TTA_TRANSFORMS,
    TtaTransform,
    apply_transform,
)
from pneumonia_hf.statistics.thresholds import OperatingPoint


@pytest.fixture(scope="module")
def predictor(tiny_model) -> Predictor:
    return Predictor.from_pretrained(tiny_model)


IMAGES = [draw_xray(seed, ill=seed % 2 == 0, size=(70 + 9 * seed, 90)) for seed in range(12)]


def test_probabilities_do_not_depend_on_the_batch(predictor):
    alone = np.concatenate([predictor.probabilities([image]) for image in IMAGES])
    for size in (1, 5, 32):
        together = predictor.probabilities(IMAGES, batch_size=size)
        assert np.abs(together - alone).max() < 1e-6
    assert together.shape == (12,) and np.all((together > 0) & (together < 1))


def test_no_images_give_no_probabilities(predictor):
    assert predictor.probabilities([]).shape == (0,)
    assert predictor.predict_all([]) == []


def test_what_a_dicom_header_says_of_its_image_refers_it(predictor):
    values = np.asarray(draw_xray(0, ill=True, size=(200, 200))).astype(np.uint16) * 16
    image = read_xray(make_dicom(values, ViewPosition="LL", WindowCenter=9, WindowWidth=0))
    found = predictor.predict_all([image.copy()], refuse=False)[0]
    assert found.decision == "REFER" and found.probability is not None
    assert "its view is lateral" in found.warnings[0]
    assert "window or VOI LUT cannot be applied" in found.warnings[1]


def test_decision_follows_threshold_and_its_range(predictor, monkeypatch):
    probability = predictor.probabilities(IMAGES[:1])[0]

    def decide(threshold, low, high):
        monkeypatch.setattr(predictor, "operating_point", OperatingPoint(threshold, low, high))
        return predictor.predict(IMAGES[0])

    above = decide(probability + 0.01, probability + 0.005, probability + 0.02)
    below = decide(probability - 0.01, probability - 0.02, probability - 0.005)
    close = decide(probability - 0.01, probability - 0.02, probability + 0.02)
    assert (above.decision, above.warnings) == ("NORMAL", ())
    assert (below.decision, below.warnings) == ("PNEUMONIA", ())
    assert (close.decision, close.label) == ("REFER", "PNEUMONIA")
    assert "Too close to the threshold" in close.warnings[0]
    assert close.probability == pytest.approx(probability)
    with pytest.raises(dataclasses.FrozenInstanceError):
        close.probability = 0


@pytest.mark.parametrize(
    ("image", "word"),
    [
        (Image.new("L", (300, 300), 90), "blank"),
        (draw_xray(1, True).resize((30, 40)), "only 30 x 40"),
        (draw_xray(1, True).resize((900, 200)), "longer than wide"),
    ],
)
def test_image_that_is_not_a_chest_xray_is_referred(predictor, image, word):
    prediction = predictor.predict(image)
    assert prediction.decision == "REFER"
    assert any(word in warning for warning in prediction.warnings)


def test_coloured_image_is_referred(predictor, tmp_path):
    Image.effect_mandelbrot((200, 200), (-2, -2, 2, 2), 50).convert("L").save(tmp_path / "grey.png")
    photograph = np.random.default_rng(0).integers(0, 255, (200, 200, 3), dtype=np.uint8)
    Image.fromarray(photograph).save(tmp_path / "photo.png")
    assert predictor.predict(read_xray(tmp_path / "photo.png")).decision == "REFER"
    assert not any(
        "coloured" in warning for warning in input_warnings(read_xray(tmp_path / "grey.png"))
    )


def test_predictions_keep_the_order_of_files_and_errors(predictor, tmp_path):
    paths = []
    for number in range(70):
        path = tmp_path / f"{number}.png"
        if number % 9 == 4:
            path.write_text("text")
        else:
            draw_xray(number, ill=number % 2 == 0).save(path)
        paths.append(path)
    results = list(predictor.predict_files(paths))
    assert [isinstance(one, XrayError) for one in results] == [n % 9 == 4 for n in range(70)]
    for number in (0, 30, 32, 69):
        expected = predictor.probabilities([read_xray(paths[number])])[0]
        assert results[number].probability == pytest.approx(expected, abs=1e-6)


def test_class_order_is_by_name_not_by_position():
    processor = make_processor(64, (0.5,) * 3, (0.5,) * 3)
    scores = {}
    for names in (("NORMAL", "PNEUMONIA"), ("Pneumonia", "Normal")):
        config = TINY_CONFIGS["convnextv2-tiny"].__class__.from_dict(
            TINY_CONFIGS["convnextv2-tiny"].to_dict() | {"id2label": dict(enumerate(names))}
        )
        torch.manual_seed(1)
        model = AutoModelForImageClassification.from_config(config)
        model.classifier.bias.data += torch.tensor([0.0, 1.0])
        scores[names[0]] = Predictor(Network(model, processor)).probabilities(IMAGES)
    assert np.allclose(scores["NORMAL"], 1 - scores["Pneumonia"])
    assert abs(scores["NORMAL"].mean() - 0.5) > 0.05


def test_model_without_a_threshold_says_so():
    config = TINY_CONFIGS["convnextv2-tiny"].__class__.from_dict(
        TINY_CONFIGS["convnextv2-tiny"].to_dict() | {"id2label": {0: "NORMAL", 1: "PNEUMONIA"}}
    )
    model = AutoModelForImageClassification.from_config(config)
    prediction = Predictor(Network(model, make_processor(64, (0.5,) * 3, (0.5,) * 3))).predict(
        IMAGES[0]
    )
    assert prediction.threshold == 0.5
    assert "stores no threshold" in prediction.warnings[0]
    assert prediction.decision == prediction.label


def test_model_of_another_task_is_rejected(tmp_path):
    model = AutoModelForImageClassification.from_config(TINY_CONFIGS["convnextv2-tiny"])
    with pytest.raises(UserError, match="no class named PNEUMONIA"):
        Predictor(Network(model, make_processor(64, (0.5,) * 3, (0.5,) * 3)))


def test_damaged_model_folders_are_rejected_in_one_sentence(tiny_model, tmp_path):
    import shutil

    with pytest.raises(UserError, match=r"config.json is missing"):
        Predictor.from_pretrained(tmp_path)
    broken = tmp_path / "broken"
    shutil.copytree(tiny_model, broken, ignore=shutil.ignore_patterns("checkpoints"))
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UserError, match="cannot be loaded") as caught:
        Predictor.from_pretrained(broken)
    assert "\n" not in str(caught.value)


def test_code_in_a_model_folder_is_never_run(tiny_model, tmp_path):
    import json
    import shutil

    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder, ignore=shutil.ignore_patterns("checkpoints"))
    (folder / "code.py").write_text(f"open({str(tmp_path / 'was_run')!r}, 'w')")
    config = json.loads((folder / "config.json").read_text())
    config["model_type"] = "of_their_own"
    config["auto_map"] = {
        "AutoConfig": "code.Config",
        "AutoModelForImageClassification": "code.Model",
    }
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="cannot be loaded"):
        Predictor.from_pretrained(folder)
    assert not (tmp_path / "was_run").exists()


def test_log_odds_with_tta_are_the_mean_over_the_image_and_its_views(tiny_model):
    plain = Predictor.from_pretrained(tiny_model)
    averaged = Predictor.from_pretrained(tiny_model, tta=True)
    pixel_values = plain.network.pixel_values(IMAGES)
    black = plain.network.pixel_values([Image.new("L", (9, 9))])
    views = [pixel_values, *(apply_transform(pixel_values, view, black) for view in TTA_TRANSFORMS)]
    with torch.inference_mode():
        logits = torch.stack(
            [plain.network.model(pixel_values=view).logits for view in views]
        ).double()
    log_odds = (logits[..., 1] - logits[..., 0]).numpy()
    # The image itself is scored as without augmentation, bit for bit.
    assert np.array_equal(log_odds[0], plain.log_odds(IMAGES))
    assert np.abs(averaged.log_odds(IMAGES) - log_odds.mean(axis=0)).max() < 1e-9
    assert np.abs(averaged.log_odds(IMAGES) - plain.log_odds(IMAGES)).max() > 1e-4
    in_batches_of_one = np.concatenate([averaged.log_odds([image]) for image in IMAGES])
    assert np.abs(in_batches_of_one - averaged.log_odds(IMAGES)).max() < 1e-5
    assert averaged.log_odds([]).shape == (0,)


def find_spot(pixels: torch.Tensor) -> tuple[float, float]:
    """Return the position of the brightest place from the centre: right, down."""
    weights = pixels[0, 0].clamp(min=0).double()
    height, width = weights.shape
    y = torch.arange(height) + 0.5 - height / 2
    x = torch.arange(width) + 0.5 - width / 2
    total = weights.sum()
    return float((weights.sum(0) * x).sum() / total), float((weights.sum(1) * y).sum() / total)


@pytest.mark.parametrize(
    ("view", "expected"),
    [
        (TtaTransform(), (20, 0)),
        (TtaTransform(right=0.1), (30, 0)),
        (TtaTransform(down=0.1), (20, 5)),
        (TtaTransform(zoom=1.5), (30, 0)),
        (TtaTransform(zoom=0.5, right=0.1), (20, 0)),
        (TtaTransform(degrees=30), (17.32, 10)),
    ],
)
def test_transform_rotates_clockwise_zooms_and_shifts(view, expected):
    pixels = torch.zeros(1, 3, 50, 100)
    pixels[:, :, 23:27, 68:72] = 200.0
    black = torch.zeros(1, 3, 1, 1)
    moved = apply_transform(pixels, view, black)
    assert moved.shape == pixels.shape
    assert find_spot(moved) == pytest.approx(expected, abs=0.1)


def test_transforms_before_and_after_normalisation_are_equal():
    processor = make_processor(64, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    gray = resize(IMAGES[:3], processor)
    black = normalise(torch.zeros(1, 1, 1, 1), processor)
    for view in TTA_TRANSFORMS:
        before = apply_transform(gray.float(), view, torch.zeros(1))
        after = apply_transform(normalise(gray, processor), view, black)
        if view.degrees or view.zoom < 1:
            assert before.min() == 0  # black from outside of the image
        assert torch.allclose(normalise(before, processor), after, atol=1e-4)
        assert abs(view.degrees) <= 3 and abs(view.zoom - 1) < 0.051
        assert max(abs(view.right), abs(view.down)) <= 0.02


def test_predictions_with_tta_warn_about_it_and_the_threshold(tiny_model):
    predictor = Predictor.from_pretrained(tiny_model, tta=True)
    plain = Predictor.from_pretrained(tiny_model)
    assert predictor.operating_point == plain.operating_point
    assert predictor.predict(IMAGES[0]).warnings[-2:] == (TTA_ON, TTA_STRANGE)
    settings = getattr(predictor.network.model.config, CONFIG_KEY)
    setattr(predictor.network.model.config, CONFIG_KEY, settings | {"tta": True})
    for tta, caveats in ((True, (TTA_ON,)), (False, (TTA_MISSED,))):
        model = Predictor(Network(predictor.network.model, predictor.network.processor), tta=tta)
        assert model.caveats == caveats


def test_half_precision_weights_are_computed_in_single_precision(tiny_model, tmp_path):
    model = AutoModelForImageClassification.from_pretrained(tiny_model).half()
    model.save_pretrained(tmp_path)
    Predictor.from_pretrained(tiny_model).network.processor.save_pretrained(tmp_path)
    assert Predictor.from_pretrained(tmp_path).network.model.dtype == torch.float32


def test_importing_the_package_imports_nothing_heavy():
    import subprocess
    import sys

    code = "import sys, pneumonia_hf; print({'torch', 'transformers', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "set()"
