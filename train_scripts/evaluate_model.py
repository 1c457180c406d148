"""Evaluate a model on labelled X-rays and write a report.

python train_scripts/evaluate_model.py --model runs/NAME --data_dir DATA --split test \
    --output_dir eval_reports/NAME
"""

from pathlib import Path

from pneumonia_hf.cli import check_inputs, make_parser, run_script


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
        help="Columns of metadata.csv: metrics of each of their values.",
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
        action="store_true",
        help="The data is an external test set: of another site than all training data.",
    )
    parser.add_argument(
        "--robustness",
        nargs="?",
        type=int,
        const=600,
        default=0,
        metavar="IMAGES",
        help="Also score copies with another frame, markers, look and quality, of this many "
        "images (default: 600): what the model decides by.",
    )
    parser.add_argument("--overwrite", action="store_true", help="Replace an older report.")
    parser.add_argument(
        "--add_to_card", action="store_true", help="Add the metrics to the model's card."
    )
    options = parser.parse_args()

    from pneumonia_hf.data.folder_source import list_others
    from pneumonia_hf.data.load import read_image_list
    from pneumonia_hf.data.sources import parse_source
    from pneumonia_hf.errors import UserError
    from pneumonia_hf.evaluation.evaluate import (
        check_card,
        choose_split,
        evaluate_predictor,
        select_listed,
    )
    from pneumonia_hf.evaluation.report import check_report_folder, to_json, write_report
    from pneumonia_hf.inference.predictor import Predictor
    from pneumonia_hf.models.model_card import add_report

    if options.robustness < 0:
        raise UserError(f"--robustness is {options.robustness}; give a number of images.")
    if options.images:
        read_image_list(options.images)  # for its errors, before images are scored
    check_report_folder(options.output_dir, options.overwrite)
    card = check_card(options.model, options.tta) if options.add_to_card else None
    sources = [parse_source(one) for one in options.data_dir]
    check_inputs(options.model, [one.where for one in sources if one.is_folder])
    others = []
    if options.other_classes:
        if len(sources) > 1 or not sources[0].is_folder:
            raise UserError("--other_classes needs one folder as --data_dir.")
        others = list_others(sources[0].where, options.other_classes)
    predictor = Predictor.from_pretrained(options.model, tta=options.tta)
    split, data = choose_split(options.data_dir, options.split, predictor, options.strict)
    if options.images:
        data, others = select_listed(data, others, options.images)
    report = evaluate_predictor(
        predictor,
        data,
        options.name or " + ".join(one.name for one in sources),
        split,
        strict=options.strict,
        subgroups=options.subgroups,
        others=others,
        external=options.external,
        robustness_images=options.robustness,
    )
    write_report(report, options.output_dir)
    if card:
        add_report(card, to_json(report))
    print((options.output_dir / "report.md").read_text(encoding="utf-8").split("\n![")[0])
    print(f"The report is in {options.output_dir}.")


if __name__ == "__main__":
    run_script(main)
