"""Check that a running Space, or the app at an address, answers as its model does here.

pneumonia-hf check --space me/pneumonia-demo

The exit status is 0 if it does, and 1 or 2 if not: for a weekly job.
"""

from __future__ import annotations

from pneumonia_hf.cli import add_positive_label, make_parser


def main() -> int:
    """Ask the Space, print what differs, and return the exit status."""
    parser = make_parser(__doc__)
    parser.add_argument(
        "--space", required=True, help="owner/name of a Space, or the address of the app."
    )
    parser.add_argument(
        "--model", help="Model to compare with; default: the one that the Space says it serves."
    )
    add_positive_label(parser)
    options = parser.parse_args()

    from pneumonia_hf.demo.check import check_space

    faults = check_space(options.space, options.model, options.positive_label)
    ending = "answers wrongly." if faults else "answers as its model does here."
    print(*faults, f"{options.space} {ending}", sep="\n")
    return int(bool(faults))
