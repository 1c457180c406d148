"""Ask a running app of its own from many clients at once: whose answer, how fast, how much memory?

python benchmarks/load.py [--clients 32] [--requests 20] [--rounds 4] [--side 224]

Starts the app on a free port of this machine, and stops it. Each request has an image of its own,
and its answer must be that of `Predictor` for this image. The table also compares one client's
`/predict` with the bare forward pass of the network, and the last line has the memory of the app
after each round of all clients.
"""

import ssl
import statistics
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
from _shared import describe_machine, start_app, time_forward
from PIL import Image, ImageFilter

from pneumonia_hf.cli import make_parser, run_script

TOLERANCE = 1e-5
CONTEXT = ssl.create_default_context()


def main() -> None:
    """Measure one client, and then many."""
    parser = make_parser(__doc__)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--requests", type=int, default=20, help="Of each client.")
    parser.add_argument("--rounds", type=int, default=4, help="Of all clients, for the memory.")
    parser.add_argument("--alone", type=int, default=50, help="Requests of a client alone.")
    parser.add_argument("--side", type=int, default=224, help="Pixels of a side of the images.")
    parser.add_argument("--model", help="Model folder; default: the one included.")
    options = parser.parse_args()

    import gradio_client  # noqa: F401  # its import is not part of the first answer

    from pneumonia_hf import Predictor
    from pneumonia_hf.models.model_folder import DEFAULT_MODEL

    model = str(options.model or DEFAULT_MODEL)
    predictor = Predictor.from_pretrained(model)
    with tempfile.TemporaryDirectory() as folder:
        files = [
            _draw(Path(folder) / f"x{number}.png", number, options.side)
            for number in range(options.clients * options.requests)
        ]
        expected = [
            found.probability if found.probability is not None else found.distance
            for found in predictor.predict_files(files)
        ]
        forward = time_forward(predictor, files[0])
        started = time.perf_counter()
        server, url = start_app(model)
        start = time.perf_counter() - started
        try:
            _ask(url, files[:1], expected)
            first = time.perf_counter() - started
            _ask(url, files[: options.alone], expected)  # to warm up
            # Each request of a client of `ssl_verify=True` reads all certificates anew.
            plain = _ask(url, files[: options.alone], expected, ssl_verify=True)
            alone = _ask(url, files[: options.alone], expected)
            memory = [_measure_memory(server.pid)]
            rounds = []
            for _ in range(options.rounds):
                started = time.perf_counter()
                lists = _ask_together(url, files, expected, options.clients)
                seconds = time.perf_counter() - started
                rounds.append((seconds, sorted(one for some in lists for one in some)))
                memory.append(_measure_memory(server.pid))
        finally:
            server.terminate()
            server.wait(20)
    together = rounds[-1]
    print(f"{describe_machine()}; {Path(model).name}.\n")
    print("| clients | context | answers | p50, ms | p95, ms | answers/s | bare forward pass, ms |")
    print("|---|---|---|---|---|---|---|")
    for clients, context, seconds, times in (
        (1, "made for each request", sum(plain), sorted(plain)),
        (1, "made once", sum(alone), sorted(alone)),
        (options.clients, "made once", *together),
    ):
        p95 = times[min(len(times) - 1, int(0.95 * len(times)))]
        cells = f"{1000 * statistics.median(times):.0f} | {1000 * p95:.0f}"
        rate = f"{len(times) / seconds:.1f} | {1000 * forward:.1f}"
        print(f"| {clients} | {context} | {len(times)} | {cells} | {rate} |")
    print(f"\nThe page answered {start:.1f} s after the start, `/predict` {first:.1f} s after it.")
    print(
        f"Memory of the app, MB: {memory[0]:.0f} after one client, and after each round of all: "
        f"{', '.join(f'{one:.0f}' for one in memory[1:])}."
    )


def _draw(path: Path, seed: int, side: int) -> Path:
    noise = np.random.default_rng(seed).integers(0, 256, (side, side), dtype=np.uint8)
    Image.fromarray(noise).filter(ImageFilter.GaussianBlur(6)).save(path)
    return path


def _ask(
    url: str, files: list[Path], expected: list[float], ssl_verify: ssl.SSLContext | bool = CONTEXT
) -> list[float]:
    """Return the seconds of each request of one client; a wrong answer ends the program."""
    from gradio_client import Client, handle_file

    client = Client(url, verbose=False, ssl_verify=ssl_verify)
    times = []
    for file, right in zip(files, expected, strict=False):
        started = time.perf_counter()
        found = client.predict(handle_file(file), api_name="/predict")[0]
        times.append(time.perf_counter() - started)
        got = found["probability"] if found["probability"] is not None else found["distance"]
        if not abs(got - right) <= TOLERANCE * max(1, abs(right)):
            raise SystemExit(f"{file.name} got {got}, not {right}: the answer of another image?")
    client.close()
    return times


def _ask_together(url, files, expected, clients: int) -> list[list[float]]:
    found: list[list[float]] = [[] for _ in range(clients)]
    faults: list[BaseException] = []

    def work(number: int) -> None:
        try:
            found[number] = _ask(url, files[number::clients], expected[number::clients])
        except BaseException as error:
            faults.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if faults:
        raise faults[0]
    return found


def _measure_memory(pid: int) -> float:
    """Return the resident memory of a process in MB, on Linux."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return float("nan")


if __name__ == "__main__":
    run_script(main)
