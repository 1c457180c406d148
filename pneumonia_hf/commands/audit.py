"""Audit a data set before training on it.

pneumonia-hf audit --data_dir DATA --output_dir eval_reports/audit-NAME
"""

from __future__ import annotations

from pathlib import Path

from pneumonia_hf.cli import check_inputs, make_parser


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
    parser.add_argument("--name", help="Name of the data in the report; default: its sources.")
    parser.add_argument(
        "--features",
        default="dinov2-small",
        help="Backbone whose frozen features are used to find label errors, or pixels, or none.",
    )
    parser.add_argument("--weights", help="Its weights: a folder or Hub id; default: its own.")
    parser.add_argument("--cache_dir", help="Folder for decoded images.")
    parser.add_argument(
        "--strict", action="store_true", help="Stop at any file that is not a labelled X-ray."
    )
    parser.add_argument(
        "--no_thumbnails", action="store_true", help="Show no X-rays in the report."
    )
    parser.add_argument("--overwrite", action="store_true", help="Replace an older report.")
    options = parser.parse_args()

    from pneumonia_hf.audit.label_errors import FeatureConfig
    from pneumonia_hf.audit.report import AUDIT_FILES, format_verdicts, write_audit
    from pneumonia_hf.audit.run import audit_sources
    from pneumonia_hf.data.sources import parse_source
    from pneumonia_hf.reporting.write import check_folder

    check_folder(options.output_dir, options.overwrite, AUDIT_FILES)
    features = FeatureConfig(options.features, options.weights)
    sources = [parse_source(one) for one in options.data_dir]
    check_inputs(data_folders=[one.where for one in sources if one.is_folder])

    from pneumonia_hf.training.augment import AugmentConfig, draw_preview

    findings, xrays = audit_sources(
        options.data_dir,
        None if options.features == "none" else features,
        options.cache_dir,
        options.strict,
    )
    write_audit(
        findings,
        xrays,
        options.output_dir,
        options.name or " + ".join(one.name for one in sources),
        not options.no_thumbnails,
        lambda pixels: draw_preview(pixels, AugmentConfig()),
    )
    print(format_verdicts(findings))
    print(f"The report is in {options.output_dir}.")
