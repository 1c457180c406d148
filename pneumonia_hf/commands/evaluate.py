"""Evaluate a model on labelled X-rays and write a report.

pneumonia-hf evaluate --model runs/NAME --data_dir DATA --split test \
    --output_dir eval_reports/NAME

With `accelerate launch train_scripts/evaluate_model.py` several processes share the scoring.
"""

from __future__ import annotations

from pathlib import Path

from pneumonia_hf.cli import add_positive_label, check_inputs, make_parser

PUBLISHED = Path(__file__).parents[2] / "eval_reports" / "published.yaml"


def main() -> None:
    """Score one split of a data folder and write report.json, report.md and the figures."""
    parser = make_parser(__doc__)
    parser.add_argument(
        "--model",
        nargs="+",
        required=True,
        help="Model folder, or Hub id with @revision; several form an ensemble.",
    )
    parser.add_argument(
        "--data_dir",
        nargs="+",
        required=True,
        help="One or more sources, each [NAME=][KIND:]WHERE, as for training.",
    )
    parser.add_argument("--split", help="train, val or test; default: test, or all images.")
    parser.add_argument(
        "--images", help="File with hashes of images, as --test_images of training: only these."
    )
    parser.add_argument("--output_dir", type=Path, required=True, help="Folder of the report.")
    parser.add_argument("--name", help="Name of the data in the report; default: its sources.")
    parser.add_argument(
        "--strict", action="store_true", help="Stop at any file that is not a labelled X-ray."
    )
    parser.add_argument(
        "--tta", action="store_true", help="Average over five views of each image: slower."
    )
    parser.add_argument(
        "--subgroups",
        nargs="+",
        default=[],
        metavar="COLUMN",
        help="Columns of metadata.csv whose groups are measured; default: all that make groups.",
    )
    parser.add_argument(
        "--other_classes",
        nargs="+",
        default=[],
        metavar="FOLDER",
        help="Folders beside NORMAL and PNEUMONIA: their images are scored but are in no metric.",
    )
    parser.add_argument(
        "--external",
        nargs="*",
        metavar="NAME=DIR",
        help="Without a value: the data is of another site than all training data. With values: "
        "further sources, each as --data_dir; the report puts them side by side.",
    )
    parser.add_argument(
        "--compare",
        metavar="MODEL",
        help="A second model, scored on the same images: paired differences and disagreements.",
    )
    add_positive_label(parser)
    parser.add_argument(
        "--compare_positive_label",
        default="PNEUMONIA",
        help="The same of the model of --compare.",
    )
    parser.add_argument(
        "--label_source",
        metavar="TEXT",
        help="Who labelled the images, for the report: 'two radiologists', 'mined from reports'.",
    )
    parser.add_argument(
        "--robustness",
        type=int,
        nargs="?",
        const=600,
        metavar="IMAGES",
        help="Number of images of which copies with another frame, markers, look and quality are "
        "scored: what the model decides by (default: 600, with --quick 0).",
    )
    parser.add_argument(
        "--attribution",
        type=int,
        metavar="IMAGES",
        help="Number of pneumonias on which the attribution methods are tested (default: 30, with "
        "--quick 0).",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="Without perturbed copies, tests of attribution maps and the search for near "
        "duplicates, and with 200 resamples.",
    )
    parser.add_argument(
        "--with_images",
        action="store_true",
        help="Add a sheet of examples, with X-rays of patients, to the folder and the page.",
    )
    parser.add_argument(
        "--cache_dir", help="Folder for decoded images and hashes, as for training."
    )
    parser.add_argument("--resamples", type=int, help="Of the bootstrap (default: 1000).")
    parser.add_argument("--overwrite", action="store_true", help="Replace an older report.")
    parser.add_argument(
        "--add_to_card", action="store_true", help="Add the metrics to the model's card."
    )
    options = parser.parse_args()

    from pneumonia_hf.errors import UserError

    for flag in ("robustness", "attribution"):
        if (getattr(options, flag) or 0) < 0:
            raise UserError(f"--{flag} is {getattr(options, flag)}; give a number of images.")
    if options.resamples is not None and options.resamples < 20:
        raise UserError(f"--resamples is {options.resamples}; give 20 or more.")

    from pneumonia_hf.data.load import read_image_lists
    from pneumonia_hf.data.pixel_store import cache_in
    from pneumonia_hf.data.sources import parse_source
    from pneumonia_hf.distributed import start_scoring
    from pneumonia_hf.evaluation.context import EvaluationConfig
    from pneumonia_hf.evaluation.report import FILES
    from pneumonia_hf.evaluation.run import DataInputs, ModelInputs, check_card, report_on
    from pneumonia_hf.models.model_card import add_report
    from pneumonia_hf.reporting.write import check_folder

    if options.images:
        read_image_lists([options.images])  # for its errors, before images are scored
    check_folder(options.output_dir, options.overwrite, FILES)
    card = check_card(options.model, options.tta) if options.add_to_card else None
    sites = options.external or []
    for flag, sources in (("--data_dir", options.data_dir), ("--external", sites)):
        parsed = [parse_source(one) for one in sources]
        check_inputs(data_folders=[one.where for one in parsed if one.is_folder], flag=flag)
    check_inputs(options.model)
    check_inputs([options.compare] if options.compare else [], flag="--compare")
    images = {"robustness": 600, "attribution": 30}
    for flag, usual in images.items():
        given = getattr(options, flag)
        images[flag] = given if given is not None else 0 if options.quick else usual
    models = ModelInputs(
        tuple(options.model),
        tuple(options.positive_label),
        options.tta,
        options.compare,
        options.compare_positive_label,
    )
    inputs = DataInputs(
        data_dir=tuple(options.data_dir),
        name=options.name,
        split=options.split,
        images=options.images,
        other_classes=tuple(options.other_classes),
        sites=tuple(sites),
    )
    config = EvaluationConfig(
        resamples=options.resamples or (200 if options.quick else 1000),
        strict=options.strict,
        subgroups=tuple(options.subgroups),
        external=options.external == [],
        robustness_images=images["robustness"],
        attribution_images=images["attribution"],
        audit="quick" if options.quick else "full",
        label_source=options.label_source,
        published=PUBLISHED if PUBLISHED.exists() else None,
        with_images=options.with_images,
    )
    state = start_scoring()
    with cache_in(options.cache_dir):
        report = report_on(models, inputs, config, options.output_dir, state)
    if state and not state.is_main_process:
        return
    if card:
        add_report(card, report.numbers)
    print((options.output_dir / "report.md").read_text(encoding="utf-8").split("\n![")[0])
    print(f"The report is in {options.output_dir}; open report.html.")
