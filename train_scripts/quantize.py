"""`pneumonia-hf quantize` as a script of this repository: see its --help."""

from pneumonia_hf.cli import run_script
from pneumonia_hf.commands.quantize import main

if __name__ == "__main__":
    run_script(main)
