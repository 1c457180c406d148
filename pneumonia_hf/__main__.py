"""`python -m pneumonia_hf` is the command `pneumonia-hf`."""

from pneumonia_hf.commands import run

run()
