"""The audit finds planted faults, and only those, and reports them."""

import json
import shutil

import numpy as np
import pytest
from helpers import REAL_XRAYS, assert_one_sentence, call_script, draw_xray
from PIL import Image, ImageEnhance

from pneumonia_hf.audit.dataset import VERDICTS
from pneumonia_hf.audit.label_checks import FALSE_ALARMS, compare_shares
from pneumonia_hf.audit.label_errors import FeatureConfig, cross_validate, find_label_errors
from pneumonia_hf.audit.run import CHECKS, audit_sources


def draw_xrays(folder, patients: int = 12, start: int = 0) -> None:
    """Write images that differ as real X-rays do."""
    for label, name in enumerate(("NORMAL", "PNEUMONIA")):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for patient in range(start, start + patients):
            image = draw_textured_xray(1000 * label + patient, ill=bool(label))
            file = f"person{patient}_virus_0.png" if label else f"IM-{patient:04}-0000.png"
            image.save(folder / name / file)


def draw_textured_xray(seed: int, ill: bool) -> Image.Image:
    """Draw an X-ray with its own texture, so that no two are similar."""
    generator = np.random.default_rng(seed)
    coarse = generator.uniform(60, 200, (9, 9)).astype(np.uint8)
    texture = Image.fromarray(coarse).resize((160, 140), Image.Resampling.BICUBIC)
    lungs = draw_xray(seed, ill, (160, 140))
    return Image.blend(lungs, texture, 0.5)


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clean")
    for number, split in enumerate(("train", "val", "test")):
        draw_xrays(folder / split, start=100 * number)
    return folder


@pytest.fixture(scope="module")
def clean_findings(clean):
    return audit_sources(clean, FeatureConfig("pixels"))[0]


def copy(clean, tmp_path):
    return shutil.copytree(clean, tmp_path / "data")


def test_clean_data_passes_every_check_of_files_and_splits(clean_findings):
    verdicts = {name: one.verdict for name, one in clean_findings.items()}
    assert set(verdicts) == set(CHECKS)
    assert set(verdicts.values()) <= set(VERDICTS)
    # Patients by file name cannot have both labels: that check does not pass, it cannot be made.
    assert verdicts["patient_labels"] == "warn"
    for name in set(CHECKS) - {"label_suspects", "shortcuts", "patient_labels"}:
        assert verdicts[name] == "pass", (name, clean_findings[name])


def test_exact_duplicates_are_found_by_pixels_not_by_files(clean, tmp_path):
    folder = copy(clean, tmp_path)
    image = Image.open(folder / "train/NORMAL/IM-0003-0000.png")
    image.convert("RGB").save(folder / "test/NORMAL/IM-0999-0000.bmp")
    shutil.copy(
        folder / "train/NORMAL/IM-0005-0000.png", folder / "train/PNEUMONIA/person5_virus_9.png"
    )
    findings, _ = audit_sources(folder)
    found = findings["exact_duplicates"]
    assert found.verdict == "fail" and found.count == 2
    groups = {tuple(sorted(group)) for group in found.more["groups"]}
    assert groups == {
        ("test/NORMAL/IM-0999-0000.bmp", "train/NORMAL/IM-0003-0000.png"),
        ("train/NORMAL/IM-0005-0000.png", "train/PNEUMONIA/person5_virus_9.png"),
    }
    assert sorted(found.more["files"]) == sorted(name for group in groups for name in group)
    assert found.more["across_parts"] == 1 and found.more["across_labels"] == 1
    assert findings["near_duplicates"].count == 0  # reported only once


@pytest.mark.parametrize(
    "change",
    [
        lambda image: image.resize((320, 280), Image.Resampling.BICUBIC),
        lambda image: ImageEnhance.Brightness(image).enhance(0.8),
        lambda image: image.crop((2, 2, 158, 138)),
        lambda image: image.rotate(1, Image.Resampling.BICUBIC),
        lambda image: Image.fromarray(
            np.clip(
                np.asarray(image) + np.random.default_rng(0).normal(0, 6, (140, 160)), 0, 255
            ).astype(np.uint8)
        ),
    ],
    ids=["resized", "darker", "cropped", "rotated", "noisy"],
)
def test_near_duplicates_of_every_kind_are_found(clean, tmp_path, change):
    folder = copy(clean, tmp_path)
    for number in (1, 4, 7):
        image = Image.open(folder / f"train/PNEUMONIA/person{number}_virus_0.png")
        change(image).save(folder / f"test/PNEUMONIA/person9{number}_virus_0.jpeg", quality=80)
    found = audit_sources(folder)[0]["near_duplicates"]
    assert found.verdict == "fail" and found.count == found.more["across_parts"] == 3
    assert {tuple(sorted(group)) for group in found.more["groups"]} == {
        (
            f"test/PNEUMONIA/person9{number}_virus_0.jpeg",
            f"train/PNEUMONIA/person{number}_virus_0.png",
        )
        for number in (1, 4, 7)
    }


def test_patients_in_two_splits_fail(clean, tmp_path):
    folder = copy(clean, tmp_path)
    rows = ["file_name,patient_id"]
    for path in sorted(folder.rglob("*.png")):
        name = path.relative_to(folder).as_posix()
        rows.append(f"{name},{'shared' if '-0007-' in name or '-0207-' in name else name}")
    (folder / "metadata.csv").write_text("\n".join(rows))
    found = audit_sources(folder)[0]["patient_overlap"]
    assert (found.verdict, found.count) == ("fail", 1)
    assert found.more["patients"] == ["shared"]
    assert found.more["files"] == [
        "train/NORMAL/IM-0007-0000.png",
        "test/NORMAL/IM-0207-0000.png",
    ]


def test_split_without_a_class_fails(clean, tmp_path):
    folder = copy(clean, tmp_path)
    shutil.rmtree(folder / "test" / "NORMAL")
    found = audit_sources(folder)[0]["balance"]
    assert found.verdict == "fail" and found.count == 1
    assert found.examples == ({"part": "test", "NORMAL": 0, "PNEUMONIA": 12},)


@pytest.mark.parametrize(
    "size", [20, *(pytest.param(size, marks=pytest.mark.slow) for size in (100, 200))]
)
def test_random_splits_give_one_false_alarm_in_a_hundred(size):
    """Of 600 data sets without a shift: patients with 1 to 5 images, split 70/15/15."""
    generator = np.random.default_rng(size)
    alarms = 0
    for run in range(600):
        of_patient = generator.integers(1, 6, size)
        patient = np.repeat(np.arange(size), of_patient)[:size]
        label = (generator.random(size) < 0.74).astype(int)[patient]
        split = generator.choice(3, size, p=[0.7, 0.15, 0.15])[patient]
        alarms += compare_shares(label, patient, split, draws=199, seed=run) < FALSE_ALARMS
    # 6 are expected; at a true rate of 1%, more than 13 have a probability of 1/200.
    assert alarms <= 13


def test_shift_between_splits_is_tested_over_patients_not_images(clean):
    label = np.repeat([1, 0, 1, 0], [1110, 390, 100, 100])  # 74% against 50%
    split = np.repeat([0, 1], [1500, 200])
    patient = np.arange(1700)
    assert compare_shares(label, patient, split) < FALSE_ALARMS
    # The same images, of 17 patients, are not evidence.
    assert compare_shares(label, patient // 100, split) > FALSE_ALARMS
    assert compare_shares(label, patient, np.zeros_like(split)) == 1


def test_patient_labels_cannot_be_checked_by_file_names(tmp_path):
    draw_xrays(tmp_path / "named", patients=6)
    findings, xrays = audit_sources(tmp_path / "named")
    assert xrays.by_file_name
    assert "cannot be checked" in findings["patient_labels"].text
    for number, path in enumerate(sorted((tmp_path / "named").rglob("*.png"))):
        path.rename(path.with_name(f"X-ray{number}.png"))
    findings, xrays = audit_sources(tmp_path / "named")
    assert not xrays.by_file_name
    assert findings["patient_labels"].text == "no patients with both labels."


def test_each_odd_image_or_file_is_reported_by_its_check(clean, tmp_path):
    folder = copy(clean, tmp_path)
    normal = folder / "train" / "NORMAL"
    Image.new("L", (200, 180), 90).save(normal / "blank.png")
    draw_textured_xray(1, False).resize((40, 36)).save(normal / "small.png")
    draw_textured_xray(2, False).resize((400, 90)).save(normal / "long.png")
    Image.merge("RGB", [draw_textured_xray(n, False) for n in (3, 4, 5)]).save(
        normal / "colour.png"
    )
    white = np.asarray(draw_textured_xray(6, False)).copy()
    white[:60] = 255
    Image.fromarray(white).save(normal / "white.png")
    (normal / "text.jpeg").write_text("no image")
    (normal / "notes.txt").write_text("notes")
    findings, _ = audit_sources(folder)
    expected = {
        "blank": ["blank.png"],
        "sizes": ["long.png", "small.png"],
        "modes": ["colour.png"],
        "saturated": ["white.png"],
        "unreadable": ["text.jpeg"],
        "strays": ["notes.txt"],
    }
    for name, files in expected.items():
        assert findings[name].more["files"] == [f"train/NORMAL/{file}" for file in files], name
        assert findings[name].verdict == "warn", name
    assert findings["unknown_patients"].count == 6
    assert findings["unknown_patients"].more["files"] == ["train/NORMAL/blank.png"]
    assert "not an image" in findings["unreadable"].examples[0]["reason"]


def test_planted_label_errors_are_among_the_first_suspects(clean, tmp_path):
    folder = tmp_path / "data"
    draw_xrays(folder, patients=60)
    for path in (folder / "PNEUMONIA").iterdir():  # gray levels alone separate the classes
        image = np.asarray(Image.open(path)).astype(int)
        image[70:] += 40
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(path)
    wrong = []
    for number in (3, 8, 21, 34, 55):
        image = folder / f"PNEUMONIA/person{number}_virus_0.png"
        image.rename(folder / f"NORMAL/person{number}_virus_0.png")
        wrong.append(f"NORMAL/person{number}_virus_0.png")
    findings, xrays = audit_sources(folder, FeatureConfig("pixels"))
    found = findings["label_suspects"]
    assert len(set(found.more["files"][:10]) & set(wrong)) >= 4
    case = next(one for one in found.more["cases"] if one["file"] in wrong)
    assert (case["label"], case["suggested"]) == ("NORMAL", "PNEUMONIA")
    assert 0 <= case["belief_in_label"] < 0.5
    rows, probabilities, area, name = find_label_errors(
        xrays.images, xrays.label, xrays.related, FeatureConfig("pixels")
    )
    assert name == "pixels" and area > 0.9
    assert len(probabilities) == 120 and len(rows) == found.count


def test_report_says_that_missing_features_were_replaced(tmp_path):
    draw_xrays(tmp_path, patients=8)
    found = audit_sources(tmp_path, FeatureConfig("vit-base"))[0]["label_suspects"]
    assert found.more["features"] == "pixels, since the weights of vit-base are not available"


def test_planted_shortcuts_are_measured_and_clean_data_has_none(tmp_path, clean_findings):
    draw_xrays(tmp_path, patients=40)
    for path in (tmp_path / "PNEUMONIA").iterdir():
        image = np.asarray(Image.open(path)).copy()
        image[:6, 100:130] = 255  # a marker in pneumonias only
        Image.fromarray(image).resize((170, 140)).save(path)
    found = audit_sources(tmp_path)[0]["shortcuts"]
    areas = found.more["auroc"]
    assert set(areas) == {"border", "size", "aspect_ratio", "brightness", "file_kind"}
    assert areas["border"]["low"] > 0.9 and areas["aspect_ratio"]["low"] > 0.9
    assert areas["file_kind"] == {"auroc": 0.5, "low": 0.5, "high": 0.5}
    assert found.verdict == "fail"
    assert clean_findings["shortcuts"].more["auroc"]["size"]["auroc"] == 0.5


@pytest.mark.slow
def test_metadata_and_source_are_measured_as_shortcuts(tmp_path):
    draw_xrays(tmp_path / "one", patients=20)
    rows = ["file_name,view,age,remark,portable"]
    for number, path in enumerate(sorted((tmp_path / "one").rglob("*.png"))):
        name = path.relative_to(tmp_path / "one").as_posix()
        rows.append(
            f"{name},{'AP' if 'PNEUMONIA' in name else 'PA'},{number % 7},text {number},"
            f"{'yes' if 'PNEUMONIA' in name and number % 4 else ''}"
        )
    (tmp_path / "one" / "metadata.csv").write_text("\n".join(rows))
    areas = audit_sources(tmp_path / "one")[0]["shortcuts"].more["auroc"]
    assert areas["metadata:view"]["auroc"] == 1
    assert 0.2 < areas["metadata:age"]["auroc"] < 0.8
    assert "metadata:remark" not in areas and "source" not in areas
    assert "metadata:portable" in areas and areas["metadata:portable"]["low"] > 0.6
    draw_xrays(tmp_path / "two", patients=20, start=500)
    shutil.rmtree(tmp_path / "two" / "NORMAL")
    assert audit_sources(tmp_path / "one")[0]["shortcuts"].more["not_measured"] == ["remark"]
    findings, _ = audit_sources([str(tmp_path / "one"), str(tmp_path / "two")])
    assert findings["shortcuts"].more["auroc"]["source"]["auroc"] > 0.6


def test_ages_of_a_dicom_header_are_measured_however_many_there_are():
    from pneumonia_hf.audit.shortcuts import _as_numbers

    ages = np.array([*(f"{number:03}M" for number in range(24)), "002Y", None, "7"], object)
    years = _as_numbers(ages)[:, 0]
    assert years[6] == 0.5 and years[[24, 26]].tolist() == [2, 7] and np.isnan(years[25])


def test_cross_validation_never_splits_a_group():
    class Memory:
        def fit(self, rows, labels):
            self.seen = set(rows[:, 0].tolist())
            return self

        def predict_proba(self, rows):
            known = np.array([one in self.seen for one in rows[:, 0].tolist()], float)
            return np.stack([1 - known, known], axis=1)

    generator = np.random.default_rng(0)
    groups = generator.integers(0, 30, 400)
    labels = (groups % 2).astype(np.int64)
    probabilities = cross_validate(groups[:, None].astype(np.float32), labels, groups, Memory)
    assert probabilities.max() == 0


def test_too_few_patients_are_reported(tmp_path):
    draw_xrays(tmp_path, patients=3)
    findings, _ = audit_sources(tmp_path, FeatureConfig("pixels"))
    assert findings["label_suspects"].verdict == findings["shortcuts"].verdict == "warn"
    assert "too few patients" in findings["shortcuts"].text


@pytest.mark.figures
def test_script_writes_a_report_for_people_and_programs(clean, tmp_path):
    folder = copy(clean, tmp_path)
    shutil.copy(folder / "train/NORMAL/IM-0003-0000.png", folder / "test/NORMAL/IM-0950-0000.png")
    flags = ["--data_dir", folder, "--output_dir", tmp_path / "audit", "--features", "pixels"]
    done = call_script("audit_data.py", *flags)
    assert done.returncode == 0, done.stderr
    assert "fail  exact_duplicates: 2 images in 1 group" in done.stdout
    report = json.loads((tmp_path / "audit" / "audit.json").read_text())
    assert set(report) == set(CHECKS)
    for name, one in report.items():
        assert one["verdict"] in VERDICTS and isinstance(one["count"], int), name
        assert isinstance(one["examples"], list)
    text = (tmp_path / "audit" / "audit.md").read_text()
    for line in text.splitlines():
        if line.startswith("!["):
            assert (tmp_path / "audit" / line.split("(")[1].rstrip(")")).exists(), line
    assert (tmp_path / "audit" / "thumbnails" / "exact_duplicates.png").exists()
    assert (tmp_path / "audit" / "thumbnails" / "augmentation.png").exists()
    assert str(folder) not in text + json.dumps(report)

    assert_one_sentence(call_script("audit_data.py", *flags), "audit.json", "--overwrite")
    done = call_script("audit_data.py", *flags, "--overwrite", "--no_thumbnails")
    assert done.returncode == 0
    assert not list((tmp_path / "audit" / "thumbnails").glob("*.png"))
    assert "thumbnails/" not in (tmp_path / "audit" / "audit.md").read_text()


def test_each_mistake_is_one_sentence(clean, tmp_path):
    flags = ["--output_dir", tmp_path / "x"]
    done = call_script("audit_data.py", "--data_dir", tmp_path / "none", *flags)
    assert_one_sentence(done, "does not exist")
    done = call_script("audit_data.py", "--data_dir", clean, *flags, "--features", "x")
    assert_one_sentence(done, "Unknown features", "pixels")
    done = call_script("audit_data.py", "--data_dir", clean, *flags, "--weights", tmp_path / "none")
    assert_one_sentence(done, "does not exist", "--weights")
    (tmp_path / "file").write_text("x")
    into = ["--output_dir", tmp_path / "file" / "x"]
    assert_one_sentence(call_script("audit_data.py", "--data_dir", clean, *into), "is a file")
    assert not (tmp_path / "x").exists()
    folder = copy(clean, tmp_path)
    (folder / "train" / "notes.txt").write_text("x")
    done = call_script("audit_data.py", "--data_dir", folder, *flags, "--strict")
    assert_one_sentence(done, "train/notes.txt", "--strict")
    for path in folder.rglob("*.png"):
        path.write_text("no image")
    done = call_script("audit_data.py", "--data_dir", folder, *flags)
    assert_one_sentence(done, "No image can be read", "not an image")


@pytest.mark.skipif(not REAL_XRAYS.exists(), reason="needs the real X-rays")
def test_only_planted_copies_are_found_among_real_xrays(tmp_path):
    files = sorted((REAL_XRAYS / "nih_adult").rglob("*.jpg"))[::4]
    for path in files:
        (tmp_path / path.parent.name).mkdir(exist_ok=True)
        shutil.copy(path, tmp_path / path.parent.name)
    planted = set()
    for number, path in enumerate(files[::16]):
        image = Image.open(path)
        width, height = image.size
        changed = [
            lambda image: image.resize((300, 300)),
            lambda image, w=width, h=height: image.crop(
                (w // 64, h // 64, w - w // 64, h - h // 64)
            ),
            lambda image: ImageEnhance.Contrast(image).enhance(1.3),
        ][number % 3](image)
        name = f"{path.parent.name}/copy{number}.png"
        changed.save(tmp_path / name)
        planted.add(frozenset({name, f"{path.parent.name}/{path.name}"}))
    found = audit_sources(tmp_path)[0]["near_duplicates"]
    assert {frozenset(group) for group in found.more["groups"]} == planted


def test_a_patient_with_both_labels_is_found_in_test_data(tmp_path):
    from helpers import draw_folder

    from pneumonia_hf.audit.run import audit_images
    from pneumonia_hf.data.load import load_splits

    data = load_splits(draw_folder(tmp_path / "data", patients=6))["all"]
    twice = {data["label"][:].index(label) for label in (0, 1)}
    rows = data.map(
        lambda row, number: {"patient": "twice" if number in twice else f"p{number}"},
        with_indices=True,
    )
    found = audit_images(rows, quick=True)["patient_labels"]
    assert found.verdict == "warn" and "1 patient with both labels" in found.text
