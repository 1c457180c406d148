"""The Space: serve the model named by MODEL_ID, or the default model."""

from pneumonia_hf.cli import run_script
from pneumonia_hf.demo.serve import main

if __name__ == "__main__":
    run_script(main)
