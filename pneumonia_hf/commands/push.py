"""Push a saved model or ensemble, with its card, to the Hugging Face Hub in one commit.

pneumonia-hf push --model runs/NAME --repo_id me/NAME --tag v1
"""

from __future__ import annotations

from pathlib import Path

from pneumonia_hf.cli import make_parser


def main() -> None:
    """Push the folder and print the URL of the commit."""
    parser = make_parser(__doc__)
    parser.add_argument("--model", type=Path, required=True, help="Saved model or ensemble folder.")
    parser.add_argument("--repo_id", required=True, help="owner/name on the Hub.")
    parser.add_argument("--public", action="store_true", help="Create a public repository.")
    parser.add_argument("--tag", help="Name of the revision, such as v1.")
    parser.add_argument(
        "--report", type=Path, help="Folder of a report on this model: its numbers and figures."
    )
    parser.add_argument(
        "--onnx", action="store_true", help="Export the model too, also with its preprocessing."
    )
    options = parser.parse_args()

    from pneumonia_hf.publish.push import push_and_tell

    push_and_tell(
        options.model,
        options.repo_id,
        not options.public,
        options.tag,
        options.report,
        options.onnx,
    )
