"""Rows of datasets: where their labels and patients come from."""

import pytest
from xray_files import kinds_of, make_columns, write_parquet

from pneumonia_hf.data.load import load_splits
from pneumonia_hf.errors import UserError


def test_patients_of_shards_come_from_file_names(tmp_path):
    from datasets import Image as ImageFeature
    from datasets import Value

    kinds = {"image": ImageFeature(), "label": Value("string")}
    labels = ["NORMAL", "PNEUMONIA"] * 6
    write_parquet(tmp_path / "x.parquet", kinds, **make_columns(12), label=labels)
    splits = load_splits(f"shards:{tmp_path}/x.parquet")
    assert splits["all"]["patient"][:4] == ["person0", "person0", "person0", "person1"]
    assert splits["all"]["file"][1] == "person0_virus_1.png"
    assert "own_patient" not in kinds_of(splits)


def test_patient_number_0_is_a_patient_and_nan_is_not(tmp_path):
    from datasets import Image as ImageFeature
    from datasets import Value

    columns = make_columns(8)
    for image in columns["image"]:
        image["path"] = "image.png"  # as some sets call all of them
    kinds = {"image": ImageFeature(), "label": Value("int64"), "patient_id": Value("float64")}
    patients = [0, 0, 1, 1, None, float("nan"), 2, 2]
    labels = [0, 1] * 4
    file = tmp_path / "x.parquet"
    write_parquet(file, kinds, **columns, label=labels, patient_id=patients)
    texts = ["a", "a", "nan", "nan", "NA", "None", " ", "b"]  # as pandas' astype(str) writes
    kinds |= {"patient_id": Value("string")}
    write_parquet(tmp_path / "text.parquet", kinds, **columns, label=labels, patient_id=texts)
    found = load_splits(f"shards:{tmp_path / 'text.parquet'}")["all"]["patient"][:]
    assert len(set(found)) == 7 and not {"nan", "NA", "None", " "} & set(found)
    data = load_splits(f"shards:{file}")["all"]
    assert data["label"][:] == labels
    assert data["patient"][:4] + data["patient"][6:] == ["0", "0", "1", "1", "2", "2"]
    assert len(set(data["patient"][:])) == 5


def test_label_column_is_found_by_its_classes_or_name(tmp_path):
    from datasets import ClassLabel, Value
    from datasets import Image as ImageFeature

    kinds = {"image": ImageFeature(), "sex": ClassLabel(names=["F", "M"]), "label": Value("string")}
    labels = ["NORMAL", "PNEUMONIA"] * 4
    file = tmp_path / "x.parquet"
    write_parquet(file, kinds, **make_columns(8), sex=[0, 0, 1, 1] * 2, label=labels)
    assert load_splits(f"shards:{file}")["all"]["label"][:] == [0, 1] * 4
    kinds["label"] = ClassLabel(names=["no", "yes"])
    write_parquet(file, kinds, **make_columns(8), sex=[0] * 8, label=[0, 1] * 4)
    with pytest.raises(UserError, match=r"no image labelled NORMAL or PNEUMONIA.*no, yes"):
        load_splits(f"shards:{file}")
