import dataclasses

import numpy as np
import pytest
import torch
from helpers import TINY_CONFIGS, draw_xray
from PIL import Image
from transformers import AutoModelForImageClassification
from xray_files import make_dicom

from pneumonia_hf import Predictor, XrayError, open_xray, read_xray
from pneumonia_hf.errors import UserError
from pneumonia_hf.imaging.preprocess import make_processor
from pneumonia_hf.inference.frontal import KINDS
from pneumonia_hf.inference.network import Network, NetworkScores
from pneumonia_hf.inference.predictor import FIELDS
from pneumonia_hf.models.backbones import head_of
from pneumonia_hf.reasons import Reason
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


def test_what_a_dicom_header_says_of_its_image_refers_it(predictor, tmp_path):
    values = np.asarray(draw_xray(0, ill=True, size=(200, 200))).astype(np.uint16) * 16
    data = make_dicom(values, ViewPosition="LL", WindowCenter=9, WindowWidth=0)
    (tmp_path / "x.dcm").write_bytes(data)
    for source in (data, open_xray(data), tmp_path / "x.dcm", str(tmp_path / "x.dcm")):
        found = predictor.predict(source)
        assert found.decision == "REFER" and found.probability is not None
        assert "its view is lateral" in found.warnings[0]
        assert "window or VOI LUT cannot be applied" in found.warnings[1]
        assert found.reasons == {Reason.VIEW, Reason.WINDOW}
    plain = predictor.predict(read_xray(data))
    assert plain.probability == found.probability and plain.reasons == set()
    with pytest.raises(XrayError, match="not an image"):
        predictor.predict(b"text")


def test_answer_has_the_fields_of_a_prediction_in_order(predictor):
    found = predictor.predict(Image.new("L", (300, 300), 90)).to_dict()
    assert list(found) == [*FIELDS]
    assert found["decision"] == "REFER" and found["warnings"] == (Reason.BLANK.value,)


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
    ("point", "distance", "label", "decision"),
    [
        ((0.5, 0.2, 0.5), 0.99, "PNEUMONIA", "PNEUMONIA"),  # the upper end is not in the range
        ((0.5, 0.5, 0.8), 0.99, "PNEUMONIA", "REFER"),  # the lower end is
        ((0.6, 0.55, 0.8), 0.99, "NORMAL", "NORMAL"),
        ((0.6, 0.55, 0.8), 1.0, "NORMAL", "REFER"),
    ],
)
def test_bounds_themselves_decide(predictor, monkeypatch, point, distance, label, decision):
    verdicts = np.array([[distance, *[np.nan] * len(KINDS)]])
    scores = NetworkScores(np.zeros(1), verdicts, np.zeros(1))  # probabilities of exactly 0.5
    monkeypatch.setattr(predictor, "score", lambda *_, **__: scores)
    monkeypatch.setattr(predictor, "operating_point", OperatingPoint(*point))
    found = predictor.predict(IMAGES[0])
    assert (found.label, found.decision, found.other_abnormal) == (label, decision, 0.25)
    assert (Reason.OTHER_ABNORMAL in found.reasons) == (label == "NORMAL")


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
    for source in (tmp_path / "photo.png", Image.fromarray(photograph)):
        found = predictor.predict(source)
        assert found.decision == "REFER" and Reason.COLOURED in found.reasons
    assert Reason.COLOURED not in predictor.predict(tmp_path / "grey.png").reasons


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


def test_a_model_that_gives_no_number_is_an_error(tiny_model):
    broken = Predictor.from_pretrained(tiny_model)
    with torch.no_grad():
        head_of(broken.network.model).weight[0, 0] = torch.nan
    with pytest.raises(UserError, match="are not finite; its weights are broken"):
        broken.predict(IMAGES[0])


def test_a_single_path_is_one_file(predictor, tmp_path):
    path = tmp_path / "x.png"
    IMAGES[0].save(path)
    one, other = list(predictor.predict_files(str(path))), list(predictor.predict_files(path))
    assert one == other == [predictor.predict(path)]


@pytest.mark.parametrize("alone", [False, True])
def test_both_ways_of_scoring_files_refuse_only_where_asked_to(predictor, monkeypatch, alone):
    def tell(some, refuse, alone=False):
        return [(refuse, alone) for _ in some]

    monkeypatch.setattr(predictor, "_predict_some", tell)
    monkeypatch.setattr(Network, "can_score_alone", alone)
    for refuse in (False, True):
        assert list(predictor.predict_images([(None, b"")], refuse)) == [(refuse, alone)]


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


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"backend": "tensorrt"}, "Unknown backend 'tensorrt'; choose from torch, onnx"),
        ({"device": "quantum"}, "The device 'quantum' cannot be used"),
        pytest.param(
            {"device": "cuda"},
            "The device 'cuda' cannot be used",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
        ),
        ({"positive_label": "normal"}, "has a class PNEUMONIA; --positive_label cannot be NORMAL"),
    ],
)
def test_settings_that_cannot_be_used_are_refused_when_the_model_is_loaded(
    tiny_model, settings, words
):
    with pytest.raises(UserError, match=words):
        Predictor.from_pretrained(tiny_model, **settings)


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
