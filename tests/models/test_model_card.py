import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from pneumonia_hf.models.model_card import make_card
from pneumonia_hf.models.model_folder import DEFAULT_MODEL, GATE_FILE, REPORTS_FILE, RUN_FILE
from pneumonia_hf.statistics.hospitals import OF_HOSPITALS


@pytest.mark.parametrize(
    ("faithfulness", "none_passes"),
    [({"best": None}, True), ({"best": "cam"}, False), (None, False)],
)
def test_card_says_when_no_attribution_method_passes_its_tests(tmp_path, faithfulness, none_passes):
    shutil.copy(DEFAULT_MODEL / RUN_FILE, tmp_path)
    reports = json.loads((DEFAULT_MODEL / REPORTS_FILE).read_text())[:2]
    del reports[0]["faithfulness"]  # as older reports
    reports[1]["faithfulness"] = faithfulness
    (tmp_path / REPORTS_FILE).write_text(json.dumps(reports))
    limits = str(make_card(tmp_path)).partition("## Limits")[2]
    sentence = "No attribution method passes its tests** on this model (NIH ChestX-ray14, adults"
    assert (sentence in limits) == none_passes
    assert ("as far as its method passes its tests" in limits) != none_passes


def test_card_of_the_default_model_is_that_of_its_files():
    assert (DEFAULT_MODEL / "README.md").read_text() == str(make_card(DEFAULT_MODEL))


def test_card_says_only_what_the_gate_of_its_model_does(tmp_path):
    whole = load_file(DEFAULT_MODEL / GATE_FILE)
    distance = {name: one for name, one in whole.items() if name not in ("weights", "bias")}
    far = {"limit": np.array(np.inf, np.float32)}
    shutil.copy(DEFAULT_MODEL / RUN_FILE, tmp_path)
    texts = []
    for gate in (None, whole, distance, whole | far):
        if gate:
            save_file(gate, tmp_path / GATE_FILE)
        text = str(make_card(tmp_path)).partition("reads all of these files,\n")[2]
        texts.append(text.partition("\n\n")[0])
    for text, refers, refuses in zip(texts, (0, 1, 1, 0), (0, 1, 0, 1), strict=True):
        assert ("unlike the\ntraining images" in text) == refers
        assert (", and refuses what is no chest X-ray." in text) == refuses
        assert text.startswith("applies the threshold below, and refers") == (not refuses)
    none = "It has no input gate: it does not notice images that are no chest X-rays."
    assert [none in text for text in texts] == [True, False, False, False]


def test_metadata_keep_the_data_sets_of_reports_apart_under_no_invented_id():
    results = make_card(DEFAULT_MODEL).data.to_dict()["model-index"][0]["results"]
    reports = json.loads((DEFAULT_MODEL / REPORTS_FILE).read_text())
    for result, report in zip(results, reports, strict=True):
        data, area = result["dataset"], report["metrics"]["auroc"]["value"]
        assert (data["type"], data["config"]) == ("unknown", report["data"])
        assert data["name"] == f"{report['data']} ({report['split']})"
        (found,) = (one["value"] for one in result["metrics"] if one["type"] == "roc_auc")
        assert found == round(area, 4)


def test_ids_of_data_sets_are_those_of_the_hub_and_else_none(tmp_path):
    run = json.loads((DEFAULT_MODEL / RUN_FILE).read_text())
    for datasets in ([], ["me/xrays"]):
        run["data"]["datasets"] = datasets
        (tmp_path / RUN_FILE).write_text(json.dumps(run))
        assert make_card(tmp_path).data.to_dict().get("datasets", []) == datasets


def test_card_shows_several_hospitals_and_not_one(tmp_path):
    run = json.loads((DEFAULT_MODEL / RUN_FILE).read_text())
    number = {"value": 0.9, "low": 0.8, "high": 0.95}
    area = {name: number for name in OF_HOSPITALS}
    of = {"patients": 20, "normals": 12, "pneumonias": 10, **area}
    for hospitals, shown in (({"a": of, "a, AP": of}, True), ({"a": of}, False)):
        run["validation"]["hospitals"] = hospitals
        (tmp_path / RUN_FILE).write_text(json.dumps(run))
        card = str(make_card(tmp_path))
        assert ("\n\n| within | patients | NORMAL |" in card) == shown
        assert ("\n| a, AP | 20 | 12 | 10 | 0.90 (0.80 to 0.95) |" in card) == shown
