"""`pneumonia-hf leave_one_site_out` as a script of this repository: see its --help."""

from pneumonia_hf.cli import run_script
from pneumonia_hf.commands.leave_one_site_out import main

if __name__ == "__main__":
    run_script(main)
