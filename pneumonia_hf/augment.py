"""Training-only augmentation, on a batch of tensors, on whatever device they are."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor, nn


def augment(pixels: Tensor, strength: float) -> Tensor:
    """Return `pixels` with small random changes that leave the diagnosis as it was.

    Rotation, shift and zoom (how a child was laid), brightness, contrast and gamma (exposure),
    blur and noise (the detector), and a square erased (markers, tubes). No flip: the heart has
    a side.

    Args:
        pixels: grey pictures of 0..255, [N, 1, H, W], uint8 or float.
        strength: 1 for the usual ranges, 0.5 for half of them, 0 for none.

    Returns:
        float32 [N, 1, H, W] in 0..255. Randomness comes from torch's default generator, which
        the Trainer seeds and saves in its checkpoints.
    """
    if strength == 0:
        return pixels.float()
    return _augmentation(strength)(pixels.float() / 255).clamp(0, 1) * 255


@lru_cache(maxsize=4)
def _augmentation(strength: float) -> nn.Module:
    import kornia.augmentation as ka

    def around_one(width: float) -> tuple[float, float]:
        return max(0.0, 1 - width * strength), 1 + width * strength

    return ka.AugmentationSequential(
        ka.RandomAffine(
            degrees=7 * strength,
            translate=(min(1, 0.05 * strength), min(1, 0.05 * strength)),
            scale=around_one(0.1),
            p=0.9,
        ),
        ka.RandomBrightness(around_one(0.15), p=0.5),
        ka.RandomContrast(around_one(0.25), p=0.5),
        ka.RandomGamma(around_one(0.35), p=0.5),
        ka.RandomGaussianBlur((5, 5), (0.1, 0.1 + 1.4 * strength), p=0.2),
        ka.RandomGaussianNoise(std=0.03 * strength, p=0.2),
        ka.RandomErasing(scale=(0.02, 0.02 + 0.06 * min(1, strength)), p=0.2),
        data_keys=["input"],
    )
