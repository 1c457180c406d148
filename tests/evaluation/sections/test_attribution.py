"""The verdicts on attribution methods."""

from pneumonia_hf.evaluation.faithfulness import Faithfulness
from pneumonia_hf.evaluation.sections.attribution import describe as describe_attribution


def test_a_report_says_so_if_no_attribution_method_passes():
    section = describe_attribution(Faithfulness((), images=5, border_area=0.36))
    assert (
        "**No method passes.**" in section.body[0]
        and section.numbers["faithfulness"]["best"] is None
    )
