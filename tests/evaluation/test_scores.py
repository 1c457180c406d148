import json
import shutil

import pytest
from helpers import draw_folder, draw_mask

from pneumonia_hf import EvaluationConfig, Predictor, evaluate_predictor, open_xray
from pneumonia_hf.data.folder_source import OtherImage
from pneumonia_hf.data.load import load_splits
from pneumonia_hf.errors import UserError
from pneumonia_hf.evaluation import scores
from pneumonia_hf.evaluation.scores import _predict, score_images
from pneumonia_hf.evaluation.steps import Steps
from pneumonia_hf.evaluation.subgroups import score_other_classes
from pneumonia_hf.inference.predictor import Prediction
from pneumonia_hf.reasons import OF_INPUT, REFUSING, Reason
from pneumonia_hf.statistics.thresholds import OperatingPoint


class StubPredictor:
    """A predictor without a network: 0.7 for every image."""

    def predict_images(self, images, refuse):
        for name, source in images:
            caveats = open_xray(source, name).caveats
            yield Prediction("PNEUMONIA", 0.7, 0.5, "REFER" if caveats else "PNEUMONIA", caveats)

    def predict_files(self, paths, refuse):
        return self.predict_images(((None, path) for path in paths), refuse)


@pytest.mark.parametrize("reason", Reason)
def test_only_the_checks_of_file_and_pixels_count_as_input_checks(reason):
    values = dict.fromkeys(("view", "bits", "modality", "width", "height", "classes"), 1)
    caveat = reason.caveat(**values, low=0.1, high=0.2)
    found = Prediction("NORMAL", 0.1, 0.5, "REFER", (Reason.TTA_ON.caveat(), caveat))
    of_others = "UNLIKE TOO_CLOSE NO_THRESHOLD NO_COMMON_THRESHOLD NO_OWN_THRESHOLD"
    others = {*of_others.split(), "OTHER_ABNORMAL", "TTA_ON", "TTA_STRANGE", "TTA_MISSED"}
    others |= {"CROPS", "MORE_CLASSES", *(one.name for one in REFUSING)}
    assert bool(found.reasons & OF_INPUT) == (reason.name not in others)
    assert not OF_INPUT & REFUSING


def test_masks_are_in_no_measurement_and_are_listed(tmp_path, by_hand):
    folder = draw_folder(tmp_path / "data", patients=3)
    draw_mask(1, (80, 80)).save(folder / "PNEUMONIA" / "person9_virus_0.png")
    data = load_splits(folder)["all"]
    found = _predict(StubPredictor(), data, "data", Steps())
    at = data["file"][:].index("PNEUMONIA/person9_virus_0.png")
    assert found["kept"].tolist() == [row for row in range(7) if row != at]
    assert len(found["probabilities"]) == 6 and not found["by_input_checks"].any()
    left_out = "PNEUMONIA/person9_virus_0.png: The image has only two gray levels, as a mask has."
    assert found["unreadable"].tolist() == [left_out]
    paths = [folder / "PNEUMONIA" / f"person{number}_virus_0.png" for number in (0, 9)]
    others = [OtherImage(path, path.name, "OTHER", {}) for path in paths]
    scored = score_other_classes(StubPredictor(), others, {}, by_hand.scores, 20)
    (summary,), rows, unreadable = scored.groups, scored.rows, scored.unreadable
    assert (summary.count, len(rows)) == (1, 1)
    assert unreadable == (
        "person9_virus_0.png: The image has only two gray levels, as a mask has.",
    )


def test_refused_images_do_not_count_as_unlike(monkeypatch, tmp_path):
    caveats = {True: (Reason.SIDE_VIEW.caveat(),), False: (Reason.UNLIKE.caveat(),)}

    class Distant(StubPredictor):
        operating_point = OperatingPoint(0.5, 0.4, 0.6)

        def predict_images(self, images, refuse):
            assert not refuse
            for number, _ in enumerate(images):
                yield Prediction("NORMAL", 0.1, 0.5, "REFER", caveats[number == 0], distance=2.0)

    monkeypatch.setattr(scores, "identify", lambda *_: ["stub"])
    found = score_images(Distant(), load_splits(draw_folder(tmp_path, patients=2))["all"])
    assert found.reasons[scores.NO_CHEST].tolist() == [True, False, False, False]
    assert found.reasons[scores.UNLIKE].tolist() == [False, True, True, True]


def test_one_class_alone_is_an_error(predictor, xray_folder):
    data = load_splits(xray_folder)["all"].select(range(5))
    with pytest.raises(UserError, match="no readable PNEUMONIA"):
        evaluate_predictor(predictor, data)


def test_unreadable_image_is_an_error_in_a_strict_evaluation(predictor, tmp_path):
    folder = draw_folder(tmp_path / "data", patients=3)
    (folder / "NORMAL" / "broken.jpeg").write_text("text")
    with pytest.raises(UserError, match=r"1 of 7 files cannot be read.*broken.jpeg"):
        evaluate_predictor(
            predictor, load_splits(folder)["all"], config=EvaluationConfig(strict=True)
        )


def test_scores_of_another_gate_config_or_label_are_not_taken_up(tiny_model, tmp_path):

    from pneumonia_hf.evaluation.scores import identify

    model = shutil.copytree(
        tiny_model, tmp_path / "model", ignore=shutil.ignore_patterns("checkpoints")
    )
    data = load_splits(draw_folder(tmp_path / "data", patients=4))["all"]
    keys = [identify(Predictor.from_pretrained(model), data)]
    keys.append(identify(Predictor.from_pretrained(model), data))
    assert keys[0] == keys[1]
    flipped = data.map(lambda row: {"label": 1 - row["label"]})
    assert identify(Predictor.from_pretrained(model), flipped) != keys[0]
    processor = json.loads((model / "preprocessor_config.json").read_text())
    (model / "preprocessor_config.json").write_text(
        json.dumps(processor | {"image_mean": [0.4] * 3})
    )
    assert identify(Predictor.from_pretrained(model), data) != keys[0]
    network, point = Predictor.from_pretrained(model).network, {"threshold": 0.5}
    point |= {"refer_low": 0.4, "refer_high": 0.6}
    ensembles = [Predictor(network, settings=point | {"temperature": one}) for one in (1, 2)]
    keys = [identify(one, data) for one in (*ensembles, Predictor(network, tta=True))]
    assert len({*map(tuple, [*keys, identify(Predictor(network), data)])}) == 4
