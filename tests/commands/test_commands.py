"""The command and its subcommands."""

import runpy
import sys

import pytest
from helpers import draw_xray


def test_the_command_runs_its_subcommands(tiny_model, tmp_path, monkeypatch, capsys):
    from pneumonia_hf import commands

    def call(*words: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["pneumonia-hf", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            commands.run()
        return ended.value.code, "".join(capsys.readouterr())

    status, text = call()
    assert status == 0 and all(name in text for name in commands.COMMANDS)
    image = tmp_path / "x.png"
    draw_xray(2, ill=True).save(image)
    status, text = call("predict", "--model", tiny_model, "--input", image, "--output", "-")
    assert status == 0 and "x.png" in text
    status, text = call("predikt")
    assert (status, text) == (2, "error: Unknown command predikt (did you mean predict?).\n")
    address = "https://example.com/x.jpg"
    status, text = call("predict", "--input", address, "--output", "-")
    assert status == 2 and f"Addresses are not read; download {address}" in text
    status, text = call("predict", "--input", "x")
    assert status == 2 and "--output" in text
    for name in commands.COMMANDS:
        status, text = call(name.replace("_", "-"), "--help")
        assert status == 0 and f"usage: pneumonia-hf {name} " in text, text[:300]


def test_the_package_runs_as_a_module_too(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["pneumonia_hf", "--version"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("pneumonia_hf", run_name="__main__")
    assert ended.value.code == 0 and capsys.readouterr().out
