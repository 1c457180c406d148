"""Which images of another site are scored."""

import hashlib
import json
import shutil

from helpers import draw_folder, draw_xray

from pneumonia_hf import Predictor
from pneumonia_hf.data.file_hashes import hash_images, to_hex
from pneumonia_hf.data.load import load_splits
from pneumonia_hf.evaluation.sections.sites import load_site


def test_a_site_leaves_out_all_images_of_patients_that_the_model_knows(tiny_model, tmp_path):
    away = draw_folder(tmp_path / "away", patients=8, images=2, seed=4000)
    (away / "OTHER").mkdir()
    for number, name in enumerate(("a.png", "b.png")):
        draw_xray(9000 + number, ill=False).save(away / "OTHER" / name)
    data = load_splits(away)["all"]
    model = shutil.copytree(
        tiny_model, tmp_path / "model", ignore=shutil.ignore_patterns("checkpoints")
    )
    run = json.loads((model / "run.json").read_text())
    run["hashes"]["train"].append(to_hex(hash_images(data))[0])  # one image of one patient
    other = hashlib.sha256((away / "OTHER" / "a.png").read_bytes()).hexdigest()[:16]
    run["hashes"]["train"].append(other)
    (model / "run.json").write_text(json.dumps(run))
    site = load_site(f"far={away}", Predictor.from_pretrained(model), ["OTHER"])
    assert site.left_out == data["patient"][:].count(data["patient"][0]) == 2
    assert len(site.data) == len(data) - 2 and site.in_test == 0
    assert [one.file for one in site.others] == ["OTHER/b.png"]
