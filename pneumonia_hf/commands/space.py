"""Create or update a Space on the Hugging Face Hub that serves a model of the Hub.

pneumonia-hf space --repo_id me/pneumonia-demo --model me/NAME@v1
"""

from __future__ import annotations

from pneumonia_hf.cli import add_positive_label, make_parser
from pneumonia_hf.errors import SettingError


def main() -> None:
    """Make the Space and print its address."""
    parser = make_parser(__doc__)
    parser.add_argument("--repo_id", required=True, help="owner/name of the Space.")
    parser.add_argument(
        "--model", required=True, help="Model of the Hub: owner/name with an optional @revision."
    )
    parser.add_argument("--public", action="store_true", help="Create a public Space.")
    parser.add_argument(
        "--hardware", default="cpu-basic", help="Hint for who duplicates it; nothing is rented."
    )
    add_positive_label(parser)
    parser.set_defaults(positive_label=[])  # without it, the Space's own variable stays
    options = parser.parse_args()
    if len(options.positive_label) > 1:
        raise SettingError("A Space takes one class for all models; give one --positive_label.")

    from pneumonia_hf.publish.space import make_space

    pushed, needs_token = make_space(
        options.repo_id,
        options.model,
        not options.public,
        options.hardware,
        next(iter(options.positive_label), None),
    )
    what = "The Space is" if pushed.is_new else "The files are as they were; the Space is"
    print(f"{what} {pushed.url.partition('/commit/')[0]}.")
    if needs_token:
        print("Its model is private: add a token that may read it as the Space's secret HF_TOKEN.")
