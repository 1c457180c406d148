"""`pneumonia-hf train` as a script, for accelerate launch: see its --help."""

from pneumonia_hf.cli import run_script
from pneumonia_hf.commands.train import main

if __name__ == "__main__":
    run_script(main)
