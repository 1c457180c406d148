from __future__ import annotations

import pytest

from pneumonia_hf.errors import UserError
from pneumonia_hf.training.augment import (
    AugmentConfig,
)


@pytest.mark.parametrize(
    "wrong",
    [
        {"augment_strength": -1.0},
        {"augment_noise": -0.1},
        {"augment_jpeg": float("nan")},
        {"augment_blur": float("inf")},
        {"augment_flip": 1.5},
    ],
)
def test_an_invalid_strength_is_reported_in_a_sentence(wrong):
    with pytest.raises(UserError, match=f"{next(iter(wrong))} is .*give 0"):
        AugmentConfig(**wrong)
