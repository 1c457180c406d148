"""Let a saved model score with 8-bit integers, several times as fast on a CPU.

pneumonia-hf quantize --model runs/NAME --data_dir DATA

Measures the ranges of its activations on some of its own training images, and what int8 changes on
its validation images. If AUROC falls by 0.002 or more, nothing is written. Afterwards
predict.py --backend int8 can be used.
"""

from __future__ import annotations

from pneumonia_hf.evaluation.own_images import parse_own_images


def main() -> None:
    """Measure the ranges and print what int8 changes."""
    options = parse_own_images(__doc__)

    from pneumonia_hf.data.pixel_store import cache_in
    from pneumonia_hf.evaluation.quantize import quantize
    from pneumonia_hf.evaluation.recalibrate import find_own_splits
    from pneumonia_hf.models.model_folder import QUANTIZATION_FILE

    with cache_in(options.cache_dir):
        own = find_own_splits(options.model, options.data_dir)
    cost = quantize(options.model, *own, options.positive_label)
    print(
        f"Wrote {options.model / QUANTIZATION_FILE}. On {cost.images} validation images int8 has "
        f"AUROC {cost.auroc_int8:.4f} instead of {cost.auroc:.4f}; probabilities change by "
        f"{cost.mean_change:.4f} on average and {cost.largest_change:.3f} at most, "
        f"{cost.decisions_changed} decisions change."
    )
