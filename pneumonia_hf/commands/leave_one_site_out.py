"""Train on the sources of all hospitals but one and score those of that one, for each in turn.

pneumonia-hf leave_one_site_out --config train_scripts/configs/efficientnet-lite0.yaml \
    --data_dir children=DATA adults=EXTERNAL --output_dir runs/sites
"""

from __future__ import annotations

from pathlib import Path


def main() -> None:
    """Read recipe and flags, train and score for each hospital, and print the table."""
    from pneumonia_hf.training.recipe import parse_run

    recipe, arguments = parse_run(description=__doc__)

    from pneumonia_hf.training.leave_one_out import TABLE_FILE, leave_one_site_out

    leave_one_site_out(recipe, arguments)
    table = Path(arguments.output_dir) / TABLE_FILE
    print(table.read_text(encoding="utf-8"))
    print(f"The table is {table}.")
