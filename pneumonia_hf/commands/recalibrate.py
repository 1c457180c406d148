"""Recalibrate a saved model on its own validation images.

pneumonia-hf recalibrate --model runs/NAME --data_dir DATA

For models of an earlier version. Temperature, threshold, REFER range, the references of
attribution maps and the input gate become those that training finds now; the weights below the
head stay. Reports in the model's card are removed: evaluate the model again with
evaluate_model.py --add_to_card.

pneumonia-hf recalibrate --model runs/NAME --threshold_on MY_HOSPITAL

chooses only the threshold, on about 50 labelled images of another hospital (a folder with NORMAL/
and PNEUMONIA/), and says what that changes there and at the hospitals of the training data.
"""

from __future__ import annotations

from pneumonia_hf.evaluation.own_images import parse_own_images


def main() -> None:
    """Calibrate the model on its own validation images, or choose its threshold on others."""
    options = parse_own_images(__doc__, with_threshold=True)

    from pneumonia_hf.data.pixel_store import cache_in
    from pneumonia_hf.evaluation.recalibrate import find_own_splits, recalibrate
    from pneumonia_hf.models.model_card import hospital_table

    if options.threshold_on:
        from pneumonia_hf.evaluation.own_threshold import (
            choose_own_threshold,
            describe_own_threshold,
        )

        model, output = options.model, options.output_dir
        with cache_in(options.cache_dir):
            own = choose_own_threshold(model, options.threshold_on, options.positive_label, output)
        print(f"{describe_own_threshold(own)}\nThe model is in {output or model}.")
        return
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
