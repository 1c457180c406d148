"""Put reports of several models side by side: a table, and a figure.

pneumonia-hf compare --output eval_reports/overview.png \
    --models "A=eval_reports/a-internal,eval_reports/a-elsewhere" "B=eval_reports/b-internal"
"""

from __future__ import annotations

from pathlib import Path

from pneumonia_hf.cli import make_parser


def main() -> None:
    """Read the reports, print the table and write the figure."""
    parser = make_parser(__doc__)
    parser.add_argument(
        "--models",
        nargs="+",
        required=True,
        metavar="NAME=INTERNAL,OTHER",
        help="A name, and the folders of its reports: on internal test data and at another site.",
    )
    parser.add_argument("--output", type=Path, required=True, help="The figure, a PNG file.")
    options = parser.parse_args()

    from pneumonia_hf.evaluation.overview import draw_overview, read_row, to_table
    from pneumonia_hf.files import unfinished_file

    rows = [read_row(one) for one in options.models]
    options.output.parent.mkdir(parents=True, exist_ok=True)
    with unfinished_file(options.output) as unfinished:
        draw_overview(rows).savefig(unfinished, format="png", dpi=130, metadata={"Software": None})
    print(to_table(rows))
    print(f"The figure is {options.output}.")
