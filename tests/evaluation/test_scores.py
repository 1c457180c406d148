import pytest
from helpers import draw_folder, draw_mask

from pneumonia_hf import open_xray
from pneumonia_hf.data.folder_source import OtherImage
from pneumonia_hf.data.load import load_splits
from pneumonia_hf.evaluation.scores import _is_doubted, _predict
from pneumonia_hf.evaluation.subgroups import score_other_classes
from pneumonia_hf.inference.predictor import Prediction
from pneumonia_hf.reasons import Reason


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
    values = dict.fromkeys(("view", "bits", "modality", "width", "height"), 1)
    caveat = reason.caveat(**values, low=0.1, high=0.2)
    found = Prediction("NORMAL", 0.1, 0.5, "REFER", (Reason.TTA_ON.caveat(), caveat))
    of_others = "NO_CHEST_XRAY UNLIKE TOO_CLOSE NO_THRESHOLD NO_COMMON_THRESHOLD NO_OWN_THRESHOLD"
    others = {*of_others.split(), "TTA_ON", "TTA_STRANGE", "TTA_MISSED"}
    assert _is_doubted(found) == (reason.name not in others)


def test_masks_are_in_no_measurement_and_are_listed(tmp_path):
    folder = draw_folder(tmp_path / "data", patients=3)
    draw_mask(1, (80, 80)).save(folder / "PNEUMONIA" / "person9_virus_0.png")
    data = load_splits(folder)["all"]
    found = _predict(StubPredictor(), data, "data")
    at = data["file"][:].index("PNEUMONIA/person9_virus_0.png")
    assert found["kept"].tolist() == [row for row in range(7) if row != at]
    assert len(found["probabilities"]) == 6 and not found["by_input_checks"].any()
    left_out = "PNEUMONIA/person9_virus_0.png: The image has only two gray levels, as a mask has."
    assert found["unreadable"].tolist() == [left_out]
    paths = [folder / "PNEUMONIA" / f"person{number}_virus_0.png" for number in (0, 9)]
    others = [OtherImage(path, path.name, "OTHER", {}) for path in paths]
    (summary,), rows, unreadable = score_other_classes(StubPredictor(), others, [])
    assert (summary.count, len(rows)) == (1, 1)
    assert unreadable == (
        "person9_virus_0.png: The image has only two gray levels, as a mask has.",
    )
