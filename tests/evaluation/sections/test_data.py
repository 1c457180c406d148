"""What was tested."""

from pneumonia_hf.data.load import load_splits
from pneumonia_hf.evaluation.choose_images import choose_split
from pneumonia_hf.evaluation.context import EvaluationConfig
from pneumonia_hf.evaluation.evaluate import evaluate_predictor


def test_patients_by_file_name_are_marked(predictor, xray_folder, adults):
    named = choose_split(xray_folder, "test", predictor)[1]
    named = evaluate_predictor(predictor, named, config=EvaluationConfig(resamples=20))
    assert named.numbers["patients_by_file_name"]
    given = evaluate_predictor(
        predictor, load_splits(adults)["all"], config=EvaluationConfig(resamples=20)
    )
    assert not given.numbers["patients_by_file_name"]
