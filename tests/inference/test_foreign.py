"""Models as other people's repositories describe them, with random weights: never quietly off."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import TINY_CONFIGS, draw_xray
from PIL import Image, ImageDraw
from transformers import (
    AutoModelForImageClassification,
    BitImageProcessor,
    ConvNextImageProcessor,
    EfficientNetImageProcessor,
    LevitImageProcessor,
    ViTImageProcessor,
    pipeline,
)

from pneumonia_hf import Predictor
from pneumonia_hf.errors import UserError
from pneumonia_hf.inference.attribution import attribute
from pneumonia_hf.inference.attribution_methods import METHODS
from pneumonia_hf.inference.foreign import find_crop
from pneumonia_hf.reasons import Reason

# A wide film, as most are: a crop takes its sides off.
IMAGES = [draw_xray(seed, ill=bool(seed % 2), size=(200, 120)) for seed in range(3)]
HALF = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}


def save_model(folder: Path, name: str, labels: list[str], processor, **settings) -> Path:
    """Write a model of a family as a repository of the Hub has it."""
    torch.manual_seed(0)
    config = TINY_CONFIGS[name].__class__.from_dict(TINY_CONFIGS[name].to_dict() | settings)
    config.id2label, config.label2id = dict(enumerate(labels)), {}
    model = AutoModelForImageClassification.from_config(config)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.02 * torch.randn(weight.shape))
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def scores_of(folder: Path, label: str) -> list[float]:
    """Return what a plain pipeline gives, which knows nothing of this project."""
    classify = pipeline("image-classification", model=str(folder), top_k=None)
    found = classify([image.convert("RGB") for image in IMAGES])
    return [one["score"] for of in found for one in of if one["label"] == label]


def check_scores(folder: Path, label: str, **options) -> Predictor:
    predictor = Predictor.from_pretrained(folder, **options)
    expected = scores_of(folder, label)
    assert len(set(expected)) == 3
    assert predictor.probabilities(IMAGES) == pytest.approx(expected, abs=1e-5)
    return predictor


def test_labels_in_another_order_with_pickled_weights_only(tmp_path):
    processor = ViTImageProcessor(size={"height": 32, "width": 32}, resample=2, **HALF)
    folder = save_model(tmp_path, "vit-base", ["Pneumonia", "normal"], processor)
    check_scores(folder, "Pneumonia")
    weights = AutoModelForImageClassification.from_pretrained(folder).state_dict()
    torch.save(weights, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    predictor = check_scores(folder, "Pneumonia")
    assert [one.reason for one in predictor.caveats] == [Reason.NO_THRESHOLD]


CROPPING = {
    "convnext": ConvNextImageProcessor(size={"shortest_edge": 32}, crop_pct=0.875),
    "bit": BitImageProcessor(
        size={"shortest_edge": 40}, crop_size={"height": 32, "width": 32}, do_center_crop=True
    ),
    # With a margin above and below.
    "padded": BitImageProcessor(
        size={"shortest_edge": 24}, crop_size={"height": 32, "width": 32}, do_center_crop=True
    ),
    "levit": LevitImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}),
}
# Of images of 200 x 120: left, top, right and bottom.
PARTS = {
    "convnext": (47, 7, 153, 113),
    "bit": (52, 12, 148, 108),
    "padded": (20, -20, 180, 140),
    "levit": (47, 7, 153, 113),
}


@pytest.mark.parametrize("kind", CROPPING)
def test_a_processor_that_crops_is_followed_and_named(tmp_path, kind):
    processor = CROPPING[kind]
    folder = save_model(tmp_path, "convnextv2-tiny", ["NORMAL", "PNEUMONIA"], processor)
    predictor = check_scores(folder, "PNEUMONIA")
    warnings = predictor.predict(IMAGES[0]).warnings
    assert "The image processor of this model crops the border of each image." in warnings


@pytest.mark.parametrize("kind", CROPPING)
def test_a_map_lies_on_the_part_that_a_processor_takes(tmp_path, monkeypatch, kind):
    image = Image.new("L", (200, 120))
    ImageDraw.Draw(image).rectangle((110, 30, 139, 59), fill=255)
    labels = ["NORMAL", "PNEUMONIA"]
    predictor = Predictor.from_pretrained(
        save_model(tmp_path, "convnextv2-tiny", labels, CROPPING[kind])
    )
    # The map of a network that looks at what is bright.
    monkeypatch.setitem(METHODS, "occlusion", lambda _, pixels: (pixels - pixels.min())[0, 0])
    found = find_crop(predictor.network.processor, image.size) * np.array([200, 120, 200, 120])
    assert found == pytest.approx(PARTS[kind], abs=2)
    values = attribute(predictor, image, "occlusion").values
    assert values.shape == (120, 200)
    bright = np.zeros(values.shape, bool)
    bright[30:60, 110:140] = True
    assert (bright & (values > 0.5)).sum() > 0.8 * (bright | (values > 0.5)).sum()
    outside = np.ones(values.shape, bool)
    left, top, right, bottom = PARTS[kind]
    outside[max(top - 2, 0) : bottom + 2, max(left - 2, 0) : right + 2] = False
    assert outside.any() and not values[outside].any()


def test_a_class_of_three_is_taken_by_its_name_and_the_others_are_named(tmp_path):
    processor = ViTImageProcessor(size={"height": 32, "width": 32})
    labels = ["COVID-19", "NORMAL", "PNEUMONIA"]
    folder = save_model(tmp_path, "vit-base", labels, processor)
    predictor = check_scores(folder, "PNEUMONIA")
    assert "This model also knows COVID-19; only its class of" in str(predictor.caveats)
    check_scores(folder, "COVID-19", positive_label="covid-19")


@pytest.mark.parametrize(
    ("labels", "processor", "settings", "words"),
    [
        (["LABEL_0", "LABEL_1"], {}, {}, r"no class named PNEUMONIA \(its classes: LABEL_0"),
        (["BACTERIAL", "NORMAL", "VIRAL"], {}, {}, "its classes: BACTERIAL, NORMAL, VIRAL"),
        (["PNEUMONIA"], {}, {}, "do not exclude each other"),
        (["Effusion", "PNEUMONIA"], {}, {"problem_type": "multi_label_classification"},
         "do not exclude each other"),
        (["NORMAL", "PNEUMONIA"], {"size": {"shortest_edge": 32}}, {}, "or has steps other than"),
        (["NORMAL", "PNEUMONIA"], {"resample": 99}, {}, "or has steps other than"),
    ],
)  # fmt: skip
def test_what_would_be_wrong_is_refused_with_the_reason(
    tmp_path, labels, processor, settings, words
):
    save_model(tmp_path, "vit-base", labels, ViTImageProcessor(size={"height": 32, "width": 32}),
               **settings)  # fmt: skip
    file = tmp_path / "preprocessor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | processor))
    with pytest.raises(UserError, match=words):
        Predictor.from_pretrained(tmp_path)


def test_class_without_a_telling_name_is_taken_when_it_is_given(tmp_path):
    processor = ViTImageProcessor(size={"height": 32, "width": 32})
    folder = save_model(tmp_path, "vit-base", ["LABEL_0", "LABEL_1"], processor)
    check_scores(folder, "LABEL_1", positive_label="LABEL_1")


def test_a_processor_with_steps_of_its_own_is_refused(tmp_path):
    # EfficientNet's divides by the standard deviation a second time.
    processor = EfficientNetImageProcessor(size={"height": 32, "width": 32}, include_top=True)
    folder = save_model(tmp_path, "convnextv2-tiny", ["NORMAL", "PNEUMONIA"], processor)
    with pytest.raises(UserError, match=r"\(EfficientNetImageProcessor.*or has steps other than"):
        Predictor.from_pretrained(folder)


def test_our_own_models_have_no_such_caveat(tiny_model):
    assert Predictor.from_pretrained(tiny_model).caveats == ()
