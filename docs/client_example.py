"""Ask a running app from a program.

python docs/client_example.py http://127.0.0.1:7860 xray.jpeg [more.jpeg ...]
"""

import ssl
import sys

from gradio_client import Client, handle_file


def main(url: str, files: list[str]) -> None:
    """Print the decision on the first file, where it comes from, and the table of all."""
    # One context for all requests: with the default, each of them reads all certificates again.
    client = Client(url, verbose=False, ssl_verify=ssl.create_default_context())
    info = client.predict(api_name="/model_info")
    print(f"{info['model']}: positive at or above {info['threshold']:.3f}")
    result, _ = client.predict(image=handle_file(files[0]), api_name="/predict")
    print(result["decision"], result["probability"], *result["warnings"])
    explained, overlay = client.predict(image=handle_file(files[0]), api_name="/explain")
    print(f"{explained['method']} ({explained['verdict']}): {overlay}")
    for row in client.predict(files=[handle_file(one) for one in files], api_name="/predict_batch"):
        print(row["file"], row["decision"], row["probability"], row["error"] or "")
    client.close()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
