"""Settings from environment variables."""

import pytest

from pneumonia_hf.demo.limits import read_prevalence
from pneumonia_hf.errors import SettingError


def test_the_prevalence_is_a_half_unless_set():
    assert read_prevalence({}) == read_prevalence({"PREVALENCE": " "}) == 0.5
    assert read_prevalence({"PREVALENCE": " '0.1' "}) == 0.1


@pytest.mark.parametrize("value", ["0", "1", "10", "-0.1", "10%", "nan", "inf", "half"])
def test_a_wrong_prevalence_is_a_sentence_that_names_it(value):
    with pytest.raises(SettingError, match=r"PREVALENCE is .*between 0 and 1"):
        read_prevalence({"PREVALENCE": value})
