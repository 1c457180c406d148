import json
import shutil

import pytest

from pneumonia_hf.models.model_card import make_card
from pneumonia_hf.models.model_folder import DEFAULT_MODEL, REPORTS_FILE, RUN_FILE


@pytest.mark.parametrize(
    ("faithfulness", "none_passes"),
    [({"best": None}, True), ({"best": "cam"}, False), (None, False)],
)
def test_card_says_when_no_attribution_method_passes_its_tests(tmp_path, faithfulness, none_passes):
    shutil.copy(DEFAULT_MODEL / RUN_FILE, tmp_path)
    reports = json.loads((DEFAULT_MODEL / REPORTS_FILE).read_text())
    del reports[0]["faithfulness"]  # as older reports
    reports[1]["faithfulness"] = faithfulness
    (tmp_path / REPORTS_FILE).write_text(json.dumps(reports))
    limits = str(make_card(tmp_path)).partition("## Limits")[2]
    sentence = "No attribution method passes its tests** on this model (NIH ChestX-ray14, adults"
    assert (sentence in limits) == none_passes
    assert ("as far as its method passes its tests" in limits) != none_passes


def test_card_of_the_default_model_is_that_of_its_files():
    assert (DEFAULT_MODEL / "README.md").read_text() == str(make_card(DEFAULT_MODEL))
