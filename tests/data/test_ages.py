import pytest

from pneumonia_hf.data.ages import to_number


@pytest.mark.parametrize(
    ("cell", "years"),
    [("058Y", 58), ("006M", 0.5), ("052W", 0.997), ("010D", 0.0274), (" 18m ", 1.5), ("7", 7)],
)
def test_age_is_read_in_years_and_a_plain_number_as_it_is(cell, years):
    assert to_number(cell) == pytest.approx(years, abs=1e-3)
    assert to_number(6) == 6 and to_number("-2.5") == -2.5


@pytest.mark.parametrize("cell", ["M", "5 mm", "006MY", "", "unknown", "1e"])
def test_what_is_neither_a_number_nor_an_age_is_an_error(cell):
    with pytest.raises(ValueError):
        to_number(cell)
