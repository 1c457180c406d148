"""Push a saved model folder, with its card, to the Hugging Face Hub in one commit.

pneumonia-hf push --model runs/NAME --repo_id me/NAME
"""

from __future__ import annotations

from pathlib import Path

from pneumonia_hf.cli import make_parser


def main() -> None:
    """Push the folder and print the URL of the commit."""
    parser = make_parser(__doc__)
    parser.add_argument("--model", type=Path, required=True, help="Saved model folder.")
    parser.add_argument("--repo_id", required=True, help="owner/name on the Hub.")
    parser.add_argument("--public", action="store_true", help="Create a public repository.")
    options = parser.parse_args()

    from pneumonia_hf.models.model_folder import push_model

    print(f"Pushed to {push_model(options.model, options.repo_id, private=not options.public)}")
