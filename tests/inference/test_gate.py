"""The input gate: what it refuses and refers, where it is kept, and what its numbers mean."""

import csv
import dataclasses
import shutil
import stat

import numpy as np
import pytest
from helpers import assert_one_sentence, call_script, draw_xray
from PIL import Image
from xray_files import make_dicom

from pneumonia_hf import EvaluationConfig, Predictor, evaluate_predictor
from pneumonia_hf.data.load import load_splits
from pneumonia_hf.errors import UserError
from pneumonia_hf.evaluation import gate_fit, recalibrate
from pneumonia_hf.evaluation.gate_fit import Described, fit_frontal
from pneumonia_hf.inference.frontal import KINDS
from pneumonia_hf.inference.gate import CELLS, Gate, Layer, middle_layer, pool_features
from pneumonia_hf.inference.network import Network
from pneumonia_hf.models.model_folder import GATE_FILE, MODEL_FILES
from pneumonia_hf.reasons import Reason

XRAYS = [draw_xray(seed, ill=seed % 2 == 0) for seed in range(160)]
RANDOM = np.random.default_rng(0)


def draw_chessboard(cell):
    """Draw squares of alternate gray levels."""
    x, y = np.indices((80, 64)) // cell
    return Image.fromarray(((x + y) % 2 * 255).astype(np.uint8))


FOREIGN = [
    Image.fromarray(RANDOM.integers(0, 256, (80, 64)).astype(np.uint8)),
    Image.new("L", (64, 80), 90),
    draw_chessboard(9),
]


@pytest.fixture(scope="module")
def gated(tiny_model, tmp_path_factory):
    """A copy of the tiny model's folder with a gate that is fitted to drawn X-rays."""
    folder = tmp_path_factory.mktemp("gated") / "model"
    shutil.copytree(tiny_model, folder, ignore=shutil.ignore_patterns("checkpoints"))
    network = Predictor.from_pretrained(tiny_model).network
    layer = middle_layer(network.model)

    def describe(images, kind, hospitals="ab"):
        found = network.features(images, layer)
        hospitals = np.resize([*hospitals], len(found)) if hospitals else np.full(len(found), "")
        return Described(found, np.full(len(found), KINDS.index(kind)), hospitals)

    films, seen = describe(XRAYS[:100], "frontal"), describe(XRAYS[100:140], "frontal")
    turned = describe([one.rotate(90, expand=True) for one in XRAYS[:50]], "rotated")
    # Others than FOREIGN, which the test asks for.
    noise = [Image.fromarray(RANDOM.integers(0, 256, (64, 64), np.uint8)) for _ in range(30)]
    plain = [Image.new("L", (64, 64), 8 * level) for level in range(30)]
    others = describe([*noise, *plain, *map(draw_chessboard, range(4, 24))], "no_xray", "")
    gate = Gate.fit(layer, films.features, np.arange(100) % 2)
    limit = float(np.quantile(gate.distances(seen.features), 0.99))
    frontal = fit_frontal(films, turned, others, seen, None)
    dataclasses.replace(gate, limit=limit, frontal=frontal, limit_reason="Said.").save(folder)
    return folder


def test_xrays_pass_and_other_images_are_refused_without_a_probability(gated):
    predictor = Predictor.from_pretrained(gated)
    passed = predictor.predict_all(XRAYS[140:])
    assert np.mean([one.distance < 1 for one in passed]) >= 0.8
    assert sum(one.decision == "REFUSED" for one in passed) <= 1  # fitted to 100 images
    turned = [one.rotate(90, expand=True) for one in XRAYS[140:143]]
    for reason, images in ((Reason.NO_XRAY, FOREIGN), (Reason.ROTATED, turned)):
        for one in predictor.predict_all(images):
            assert (one.decision, one.probability, one.label) == ("REFUSED", None, None)
            assert one.caveats[0].reason == reason


def test_the_distance_refers_and_never_refuses(gated):
    """However far: also the gate of 0.5, which has no classifier, nor the means of the grid."""
    network = Predictor.from_pretrained(gated).network
    old = Layer(network.gate.layer.name, cells=0)
    features = network.features(XRAYS[:100], old)
    network.gate = Gate.fit(old, features, np.arange(100) % 2)
    whole = network.features(XRAYS[:3], middle_layer(network.model))
    assert features.shape[1] * (2 + CELLS**2) == whole.shape[1] * 2
    for one in Predictor(network).predict_all(FOREIGN):
        assert one.decision == "REFER" and one.distance > 2 and Reason.UNLIKE in one.reasons


def test_a_gate_is_loaded_as_it_was_saved_also_without_a_classifier(gated, tmp_path):
    gate = Gate.load(gated, "model")
    assert gate.limit_reason == "Said." and gate.layer.cells == CELLS
    dataclasses.replace(gate, frontal=None, limit=np.inf).save(tmp_path)
    old, features = Gate.load(tmp_path, "model"), RANDOM.random((3, 2 * len(gate.mean)))
    assert old.frontal is None and old.layer.cells == 0 and old.limit == np.inf
    assert (old.judge(features[:, : len(gate.mean)])[:, 0] == 0).all()


def test_features_keep_where_in_the_image_something_is():
    """Of a map of one channel, in which the positions are numbered; and of tokens."""
    torch = pytest.importorskip("torch")
    values = torch.arange(36.0).view(1, 1, 6, 6)
    mean, deviation, *grid = pool_features(values, 3)[0].tolist()
    assert mean == 17.5 and deviation == pytest.approx(np.arange(36).std())
    assert grid == [3.5 + 12 * row + 2 * column for row in range(3) for column in range(3)]
    tokens = torch.cat([torch.tensor([[[99.0]]]), values.flatten(2).transpose(1, 2)], dim=1)
    assert pool_features(tokens, 3)[0, 2:].tolist() == grid  # the first has no place
    broken = pool_features(torch.arange(16.0).view(1, 1, 4, 4), 3)[0, 2:]
    assert broken[0] == np.mean([0, 1, 4, 5]) and broken[4] == np.mean([5, 6, 9, 10])


def test_a_person_who_says_that_it_is_one_gets_the_probability_and_refer(gated):
    predictor = Predictor.from_pretrained(gated)
    (found,) = predictor.predict_all(FOREIGN[:1], refuse=False)
    assert found.decision == "REFER" and found.caveats[0].reason == Reason.NO_XRAY
    assert found.probability == pytest.approx(predictor.probabilities(FOREIGN[:1])[0], abs=1e-9)


def test_a_file_that_says_it_is_of_another_modality_is_refused_also_without_a_gate(tiny_model):
    predictor, values = Predictor.from_pretrained(tiny_model), np.asarray(XRAYS[140], int) * 16
    slice_of_mr = make_dicom(values, Modality="MR")
    found = predictor.predict(slice_of_mr)
    assert (found.decision, found.probability, found.label) == ("REFUSED", None, None)
    assert Reason.MODALITY in found.reasons
    (said,) = predictor.predict_all([slice_of_mr], refuse=False)
    assert said.decision == "REFER" and said.probability is not None
    assert predictor.predict(make_dicom(values)).decision != "REFUSED"


@pytest.mark.parametrize(("limit", "decision"), [(0.99, "REFER"), (1.01, "NORMAL")])
def test_an_image_beyond_the_limit_is_referred(gated, limit, decision, monkeypatch):
    predictor = Predictor.from_pretrained(gated)
    point = dataclasses.replace(predictor.operating_point, threshold=1.0, low=1.0, high=1.0)
    monkeypatch.setattr(predictor, "operating_point", point)
    network = predictor.network
    distance = predictor.predict(XRAYS[140]).distance * network.gate.limit
    network.gate = dataclasses.replace(network.gate, limit=distance * limit)
    found = predictor.predict(XRAYS[140])
    assert found.decision == decision and (Reason.UNLIKE in found.reasons) == (limit < 1)
    assert found.probability is not None


def test_scores_and_distances_depend_neither_on_the_batch_nor_on_tta(gated, tiny_model):
    network, plain = (Predictor.from_pretrained(one).network for one in (gated, tiny_model))
    images = [*XRAYS[:5], *FOREIGN[:2]]
    scores, together, _ = network.score(images, batch_size=3)
    assert np.array_equal(scores, plain.log_odds(images, batch_size=3))
    alone = np.concatenate([network.score([one])[1] for one in images])
    assert together == pytest.approx(alone, rel=1e-3, abs=1e-3)
    assert network.score(images, tta=True)[1] == pytest.approx(alone, rel=1e-3, abs=1e-3)
    assert np.isnan(plain.score(XRAYS[:2])[1]).all()
    assert Predictor(plain).predict(XRAYS[0]).distance is None


def test_an_ensemble_takes_the_mean_over_the_members_that_have_a_gate(gated, tiny_model):
    network, plain = (Predictor.from_pretrained(one).network for one in (gated, tiny_model))
    far = Network(network.model, network.processor, gate=network.gate)
    far.gate = dataclasses.replace(network.gate, limit=network.gate.limit / 3)
    one = Predictor(network).predict(XRAYS[0]).distance
    assert Predictor(network, plain).predict(XRAYS[0]).distance == pytest.approx(one)
    both = Predictor(network, far, plain).predict_all(XRAYS[:1], refuse=False)[0].distance
    assert both == pytest.approx(2 * one, rel=1e-5)
    assert Predictor(network, plain).predict(FOREIGN[0]).decision == "REFUSED"
    # A member that is sure of a frontal X-ray outvotes one that barely refuses.
    bias = network.gate.frontal.bias + 1e3 * (np.arange(len(KINDS)) == 0)
    far.gate = dataclasses.replace(
        network.gate, frontal=dataclasses.replace(network.gate.frontal, bias=bias)
    )
    assert Predictor(network, far).predict(FOREIGN[0]).decision != "REFUSED"


def test_distance_is_mahalanobis_to_the_nearest_class(monkeypatch):
    """On features of which the components keep all but one direction."""
    monkeypatch.setattr("pneumonia_hf.inference.gate.COMPONENTS", 2)
    random = np.random.default_rng(3)
    groups = np.arange(4000) % 2

    def draw(groups):
        own = np.c_[random.normal(0, 0.01, len(groups)), random.normal(0, 0.002, len(groups))]
        return np.c_[np.ones(len(groups)), own + 0.2 * groups[:, None]]

    gate = Gate.fit(Layer("layer", cells=0), draw(groups), groups)
    limit = float(np.quantile(gate.distances(draw(groups)), 0.99))
    gate = dataclasses.replace(gate, limit=limit)
    assert np.mean(gate.distances(draw(groups)) >= 1) == pytest.approx(0.01, abs=0.006)
    # A step of the same length is farther along the narrow axis.
    steps = np.array([[1, 0, 0], [1, 0.03, 0], [1, 0, 0.03], [1, 0.1, 0.1]])
    middle, wide, narrow, between = gate.distances(steps)
    assert middle < 0.1 and middle < wide < 2 and narrow > 5 and between > 5
    assert gate.distances(steps * 7) == pytest.approx(gate.distances(steps), rel=1e-6)


def test_a_gate_is_saved_as_the_same_bytes_each_time(gated, tmp_path):
    gate, saved = Gate.load(gated, "model"), set()
    for _ in range(12):
        gate.save(tmp_path)
        saved.add((tmp_path / GATE_FILE).read_bytes())
    assert len(saved) == 1
    again = Gate.load(tmp_path, "model")
    assert (again.layer, again.limit_reason) == (gate.layer, gate.limit_reason)


def test_a_damaged_gate_or_one_of_another_network_is_one_sentence(gated, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(gated, folder)
    gate = Gate.load(folder, "model")
    dataclasses.replace(gate, layer=Layer("elsewhere.3")).save(folder)
    with pytest.raises(UserError, match="is of another network"):
        Predictor.from_pretrained(folder)
    (folder / GATE_FILE).write_bytes(b"no tensors")
    with pytest.raises(UserError, match=r"gate\.safetensors of .* is damaged"):
        Predictor.from_pretrained(folder)


@pytest.mark.slow
def test_recalibration_fits_the_gate_and_keeps_it_where_the_images_are_few(
    tiny_model, xray_folder, tmp_path, monkeypatch
):
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder, ignore=shutil.ignore_patterns("checkpoints"))
    splits = recalibrate.find_own_splits(folder, [str(xray_folder)])
    recalibrate.recalibrate(folder, *splits)
    assert not (folder / GATE_FILE).exists()  # fewer than LEAST_IMAGES
    monkeypatch.setattr(gate_fit, "LEAST_IMAGES", (4, 2))
    recalibrate.recalibrate(folder, *splits)
    first = (folder / GATE_FILE).read_bytes()
    assert stat.S_IMODE((folder / GATE_FILE).stat().st_mode) == stat.S_IMODE(
        (folder / "run.json").stat().st_mode
    )
    monkeypatch.setattr(gate_fit, "LEAST_IMAGES", (400, 200))
    recalibrate.recalibrate(folder, *splits)
    assert (folder / GATE_FILE).read_bytes() == first
    assert GATE_FILE in MODEL_FILES


def test_a_refused_file_has_no_probability_in_the_table(gated, tmp_path):
    FOREIGN[0].save(tmp_path / "noise.png")
    XRAYS[150].save(tmp_path / "xray.png")
    paths = tmp_path / "noise.png", tmp_path / "xray.png"
    done = call_script(
        "predict.py", "--model", gated, "--input", *paths, "--output", tmp_path / "out.csv"
    )
    assert done.returncode == 0
    noise, xray = csv.DictReader((tmp_path / "out.csv").read_text().splitlines())
    assert (noise["decision"], noise["probability"]) == ("REFUSED", "")
    assert Reason.NO_XRAY.value in noise["warnings"] and 0 < float(xray["probability"]) < 1


def test_recalibrating_with_other_images_is_one_sentence(gated, tmp_path):
    from helpers import draw_folder

    data = draw_folder(tmp_path / "data", patients=6, seed=99)
    done = call_script("recalibrate.py", "--model", gated, "--data_dir", data)
    assert_one_sentence(done, "validation images", "--data_dir")


def test_a_report_counts_what_the_gate_would_refuse_and_keeps_it(gated, xray_folder):
    predictor = Predictor.from_pretrained(gated)
    network, data = predictor.network, load_splits(xray_folder)["all"]
    bias = network.gate.frontal.bias - 1e3 * (np.arange(len(KINDS)) == 0)
    frontal = dataclasses.replace(network.gate.frontal, bias=bias)
    network.gate = dataclasses.replace(network.gate, frontal=frontal)
    report = evaluate_predictor(predictor, data, "drawn", config=EvaluationConfig(resamples=20))
    scores = report.evaluation.scores
    assert len(scores.probabilities) == len(data) and set(scores.decisions) == {"REFER"}
    count = len(data)
    said = f"finds 0 of the {count} images unlike the training images, and would refuse {count}"
    assert any(said in note for note in report.numbers["notes"])
