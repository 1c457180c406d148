"""Which images are examples."""

import numpy as np
import pytest
from datasets import Dataset
from helpers import call_script, draw_folder
from PIL import Image

from pneumonia_hf.evaluation.scores import Scores
from pneumonia_hf.evaluation.sections.examples import choose_examples


def test_examples_are_the_surest_right_and_wrong_the_least_sure_and_the_referred():
    rows = Dataset.from_dict({"file": [f"f{n}" for n in range(8)], "patient": list("abcdefgh")})
    labels = np.array([1, 1, 1, 0, 0, 0, 1, 0])
    scores = np.array([0.99, 0.9, 0.02, 0.01, 0.2, 0.97, 0.52, 0.45])
    decisions = np.array(["PNEUMONIA"] * 6 + ["REFER"] * 2)
    found = choose_examples(
        Scores(rows, labels, scores, *np.full((2, 8), np.nan), decisions, {}, ()), 0.5, count=2
    )
    assert found == {
        "surest right": [0, 3],
        "surest wrong": [2, 5],
        "least sure": [6, 7],
        "referred, far from the threshold": [7, 6],
    }


@pytest.mark.slow
@pytest.mark.figures
def test_a_sheet_of_examples_is_made_only_on_request(tiny_model, tmp_path):
    folder = draw_folder(tmp_path / "data", patients=6)
    flags = ["--model", tiny_model, "--data_dir", folder, "--quick", "--output_dir"]
    plain = call_script("evaluate_model.py", *flags, tmp_path / "plain")
    assert plain.returncode == 0, plain.stderr
    assert not (tmp_path / "plain" / "examples.png").exists()
    assert "image/png" not in (tmp_path / "plain" / "report.html").read_text()
    done = call_script("evaluate_model.py", *flags, tmp_path / "shown", "--with_images")
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "shown" / "report.html").read_text()
    assert page.count("data:image/png") == 1 and "holds X-rays of patients" in page
    with Image.open(tmp_path / "shown" / "examples.png") as sheet:
        assert np.asarray(sheet.convert("L")).std() > 20
