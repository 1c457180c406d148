"""A Report as Markdown, section by section."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pneumonia_hf.evaluation.evaluate import Report
from pneumonia_hf.evaluation.report import scores_text, tests_text


def to_markdown(report: Report, figures: Sequence[str]) -> str:
    """Return the report; `figures` are the names of the PNG files beside it."""
    paragraphs = [
        f"# {report.model} on {report.data} ({report.split})",
        "Research software, not a medical device.",
        *(f"**{note}**" for note in report.notes),
        *(
            f"**The audit of this data fails ({one.check.replace('_', ' ')}): {one.text} Numbers "
            f"on such data may be made by it.**"
            for one in report.findings
            if one.verdict == "fail"
        ),
    ]
    for title, (describe, of_section) in SECTIONS.items():
        text = describe(report)
        if not text:
            continue
        shown = [name for name in of_section if name in figures]
        paragraphs += [f"## {title}", *text]
        paragraphs += [f"![{name.replace('_', ' ')}]({name}.png)" for name in shown]
    return "\n\n".join(filter(None, paragraphs)) + "\n"


# Title -> the text of a section, none if it has nothing to say; and its figures.
SECTIONS: dict[str, tuple[Callable[[Report], list[str]], tuple[str, ...]]] = {
    "What was tested": (scores_text.describe_data, ()),
    "Discrimination": (
        scores_text.describe_discrimination,
        ("confusion_matrix", "roc_curve", "precision_recall"),
    ),
    "Threshold": (scores_text.describe_thresholds, ("decision_curve",)),
    "Calibration": (scores_text.describe_calibration, ("calibration",)),
    "Knowing when not to answer": (scores_text.describe_referral, ("risk_coverage",)),
    "Subgroups": (scores_text.describe_subgroups, ("subgroups",)),
    "Robustness": (tests_text.describe_robustness, ("robustness",)),
    "Do the attribution maps mean anything": (tests_text.describe_faithfulness, ()),
    "Other sites and other findings": (tests_text.describe_sites, ("sites",)),
    "Comparison": (tests_text.describe_comparison, ()),
    "Examples": (tests_text.describe_examples, ("examples",)),
    "Against others": (tests_text.describe_published, ()),
    "Checklist": (tests_text.describe_checklist, ()),
    "Files": (tests_text.describe_files, ()),
}
