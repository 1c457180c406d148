"""The app as it is served: app.py in a separate process."""

import os
import socket
import subprocess
import sys
import time
import urllib.request

import pytest
from helpers import ROOT


def find_free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.fixture(scope="package")
def app_url(tiny_model):
    port = find_free_port()
    environment = os.environ | {"MODEL_ID": str(tiny_model), "GRADIO_SERVER_PORT": str(port)}
    log = (tiny_model.parent / "app.log").open("w+")
    server = subprocess.Popen(
        [sys.executable, str(ROOT / "app.py")], env=environment, stdout=log, stderr=log
    )
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(240):
            try:
                urllib.request.urlopen(url, timeout=5).close()
                break
            except OSError:
                assert server.poll() is None, log.seek(0) or log.read()
                time.sleep(0.25)
        yield url
    finally:
        server.terminate()
        server.wait(20)
        log.close()
