"""What a report fills in, and what it leaves open."""

from pneumonia_hf.evaluation.sections.checklist import ITEMS, OPEN


def test_the_checklist_leaves_open_what_only_people_can_say(report):
    filled = {one["topic"]: one["answer"] for one in report.numbers["checklist"]}
    assert filled["intended use, setting and users"] == OPEN
    assert filled["numbers of images, patients, classes, missing data"].startswith("96 images")
    assert f"{report.evaluation.threshold:.4f}" in filled["threshold and how it was chosen"]
    assert sum(answer == OPEN for answer in filled.values()) == 8


def test_one_error_is_singular():
    (failures,) = (one for one in ITEMS if one.topic == "failures")
    for missed, alarms, text in (
        (1, 0, "1 pneumonia missed and 0 normals called pneumonia; "),
        (2, 1, "2 pneumonias missed and 1 normal called pneumonia; "),
    ):
        counts = {"confusion": {"false_negative": missed, "false_positive": alarms}}
        assert failures.answer(counts).startswith(text)
