"""Say what is wrong with a data set before anyone trains on it.

python train_scripts/audit_data.py --data_dir DATA --output_dir eval_reports/audit-NAME
"""

from pathlib import Path

from pneumonia_hf.cli import make_parser, run_script


def main() -> None:
    """Run every check, print the verdicts, and write audit.json, audit.md and thumbnails."""
    parser = make_parser(__doc__)
    parser.add_argument(
        "--data_dir",
        nargs="+",
        required=True,
        help="One or more sources, each [NAME=][KIND:]WHERE, as for training.",
    )
    parser.add_argument("--output_dir", type=Path, required=True, help="Folder of the report.")
    parser.add_argument("--name", help="What the report calls the data; its sources' names else.")
    parser.add_argument(
        "--features",
        default="dinov2-small",
        help="Backbone whose frozen features look for wrong labels, or pixels, or none.",
    )
    parser.add_argument("--weights", help="Its weights: a folder or Hub id; its own Hub id else.")
    parser.add_argument("--cache_dir", help="Folder for decoded images.")
    parser.add_argument("--strict", action="store_true", help="Stop at anything that is no X-ray.")
    parser.add_argument(
        "--no_thumbnails", action="store_true", help="Show no X-rays in the report."
    )
    parser.add_argument("--overwrite", action="store_true", help="Replace an older report.")
    options = parser.parse_args()

    from pneumonia_hf.audit.label_errors import FeatureConfig
    from pneumonia_hf.audit.report import check_audit_folder, format_verdicts, write_audit
    from pneumonia_hf.audit.run import audit_sources
    from pneumonia_hf.data.sources import parse_source
    from pneumonia_hf.training.augment import AugmentConfig, draw_preview

    check_audit_folder(options.output_dir, options.overwrite)
    features = FeatureConfig(options.features, options.weights)
    findings, xrays = audit_sources(
        options.data_dir,
        None if options.features == "none" else features,
        options.cache_dir,
        options.strict,
    )
    name = options.name or " + ".join(parse_source(one).name for one in options.data_dir)
    write_audit(
        findings,
        xrays,
        options.output_dir,
        name,
        not options.no_thumbnails,
        lambda pixels: draw_preview(pixels, AugmentConfig()),
    )
    print(format_verdicts(findings))
    print(f"The report is in {options.output_dir}.")


if __name__ == "__main__":
    run_script(main)
