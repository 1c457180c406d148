"""The arguments of scripts that use the images on which a saved model was trained."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from pneumonia_hf.cli import add_positive_label, check_inputs, make_parser


def parse_own_images(description: str) -> Namespace:
    """Return `model`, a folder, `data_dir`, the sources of its training data, and `cache_dir`.

    Model and sources are checked.
    """
    parser = make_parser(description)
    parser.add_argument("--model", type=Path, required=True, help="Folder of a saved model.")
    add_positive_label(parser)
    parser.add_argument(
        "--data_dir",
        nargs="+",
        required=True,
        help="The sources of its training data, each [NAME=][KIND:]WHERE.",
    )
    parser.add_argument("--cache_dir", help="Folder for hashes of images, as for training.")
    options = parser.parse_args()

    from pneumonia_hf.data.sources import parse_source
    from pneumonia_hf.models.model_folder import check_model_folder

    check_model_folder(options.model)
    sources = [parse_source(one) for one in options.data_dir]
    check_inputs(data_folders=[one.where for one in sources if one.is_folder])
    return options
