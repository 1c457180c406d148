"""The arguments of scripts that use the images on which a saved model was trained."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from pneumonia_hf.cli import add_positive_label, check_inputs, make_parser
from pneumonia_hf.errors import SettingError


def parse_own_images(description: str, with_threshold: bool = False) -> Namespace:
    """Return `model`, a folder, `data_dir`, the sources of its training data, and `cache_dir`.

    Model and sources are checked. `with_threshold` adds `threshold_on`, another source that may
    take the place of `data_dir`, and `output_dir`.
    """
    parser = make_parser(description)
    parser.add_argument("--model", type=Path, required=True, help="Folder of a saved model.")
    add_positive_label(parser)
    parser.add_argument(
        "--data_dir",
        nargs="+",
        default=[],
        required=not with_threshold,
        help="The sources of its training data, each [NAME=][KIND:]WHERE.",
    )
    parser.add_argument("--cache_dir", help="Folder for hashes of images, as for training.")
    if with_threshold:
        parser.add_argument(
            "--threshold_on",
            metavar="SOURCE",
            help="Instead of --data_dir: labelled images of your own hospital, as [NAME=][KIND:]"
            "WHERE; only the threshold and its range are chosen, on them.",
        )
        parser.add_argument(
            "--output_dir",
            type=Path,
            help="With --threshold_on: a new folder for the changed model; default: --model.",
        )
    options = parser.parse_args()
    if with_threshold and bool(options.data_dir) == bool(options.threshold_on):
        raise SettingError("Give either --data_dir or --threshold_on.")

    from pneumonia_hf.data.sources import parse_source
    from pneumonia_hf.models.model_folder import check_model_folder

    check_model_folder(options.model)
    texts = [*options.data_dir, options.threshold_on] if with_threshold else options.data_dir
    sources = [parse_source(one) for one in texts if one]
    check_inputs(data_folders=[one.where for one in sources if one.is_folder])
    return options
