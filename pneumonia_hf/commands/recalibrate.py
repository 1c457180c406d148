"""Recalibrate a saved model on its own validation images.

pneumonia-hf recalibrate --model runs/NAME --data_dir DATA

For models of an earlier version. Temperature, threshold, REFER range, the references of
attribution maps and the input gate become those that training finds now; the weights below the
head stay. Reports in the model's card are removed: evaluate the model again with
evaluate_model.py --add_to_card.
"""

from __future__ import annotations

from pneumonia_hf.evaluation.own_images import parse_own_images


def main() -> None:
    """Find the model's own validation images in the data, and calibrate the model on them."""
    options = parse_own_images(__doc__)

    from pneumonia_hf.data.pixel_store import cache_in
    from pneumonia_hf.evaluation.recalibrate import find_own_splits, recalibrate
    from pneumonia_hf.models.model_card import hospital_table

    with cache_in(options.cache_dir):
        train, validation = find_own_splits(options.model, options.data_dir)
    new = recalibrate(options.model, train, validation, options.positive_label)
    found = new["config"]
    print(hospital_table(new["hospitals"]))
    print(
        f"Calibrated on {len(validation)} validation images: temperature "
        f"{found['temperature']:.4f}, positive at or above {found['threshold']:.4f}, referred "
        f"from {found['refer_low']:.4f} to {found['refer_high']:.4f}."
    )
