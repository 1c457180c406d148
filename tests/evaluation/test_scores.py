from helpers import draw_folder, draw_mask

from pneumonia_hf import open_xray
from pneumonia_hf.data.folder_source import OtherImage
from pneumonia_hf.data.load import load_splits
from pneumonia_hf.evaluation.scores import _predict
from pneumonia_hf.evaluation.subgroups import score_other_classes
from pneumonia_hf.inference.predictor import Prediction


class StubPredictor:
    """A predictor without a network: 0.7 for every image."""

    def predict_images(self, images, refuse):
        for name, source in images:
            caveats = open_xray(source, name).caveats
            yield Prediction("PNEUMONIA", 0.7, 0.5, "REFER" if caveats else "PNEUMONIA", caveats)

    def predict_files(self, paths, refuse):
        return self.predict_images(((None, path) for path in paths), refuse)


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
    scored = score_other_classes(StubPredictor(), others, [])
    (summary,), rows, unreadable = scored.groups, scored.rows, scored.unreadable
    assert (summary.count, len(rows)) == (1, 1)
    assert unreadable == (
        "person9_virus_0.png: The image has only two gray levels, as a mask has.",
    )
