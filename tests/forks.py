"""Programs in processes of their own, without the seconds that their imports take.

The fork server of multiprocessing imports once what training needs, and forks each program. It is a
process with its own session, environment and output, and it is killed as any other. What is read
from the environment during imports, such as the address of the Hub, stays as it was. Programs are
started by real command lines in tests/integration and in tests/training/test_interruption.py.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import subprocess
import sys
from multiprocessing.process import BaseProcess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["pneumonia_hf.training.train", "sklearn.metrics"])


def start_fork(
    program: str | Path, *arguments: object, log: Path, **environment: str
) -> BaseProcess:
    """Start a script, or code, in a forked process; append what it writes to `log`."""
    words = [str(one) for one in arguments]
    process = SERVER.Process(target=_run, args=(program, words, log, os.environ | environment))
    process.start()
    return process


def end_fork(process: BaseProcess, seconds: float = 240) -> int:
    """Wait for the end of a process, and return its status: minus the signal that killed it."""
    process.join(seconds)
    if process.exitcode is None:
        process.kill()
        raise TimeoutError(f"process {process.pid} runs for more than {seconds} s")
    return process.exitcode


def run_fork(
    program: str | Path, *arguments: object, log: Path, **environment: str
) -> subprocess.CompletedProcess:
    """Run a script, or code, to its end; all that it writes is in `stdout`."""
    status = end_fork(start_fork(program, *arguments, log=log, **environment))
    return subprocess.CompletedProcess([str(program)], status, log.read_text())


def fork_two(machine: Path, script: Path, *arguments: object, log: Path) -> None:
    """Run a script in two processes, with the variables that `accelerate launch` gives them.

    Args:
        machine: the file that `accelerate launch` would take as --config_file.
        script: what both run, with `arguments`.
        log: its output; that of the second process lies beside it.
    """
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_multi_gpu_env

    typed = launch_command_parser().parse_args(["--config_file", str(machine), str(script)])
    settings = _validate_launch_command(typed)[0]
    common = prepare_multi_gpu_env(settings)  # which also chooses a free port
    common |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(settings.main_process_port)}
    common |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    logs = [log, log.with_name(f"{log.name}-2")]
    processes = [
        start_fork(script, *arguments, log=own, **common | {"RANK": str(n), "LOCAL_RANK": str(n)})
        for n, own in enumerate(logs)
    ]
    try:
        codes = [end_fork(one) for one in processes]
    except TimeoutError as error:
        codes = error
    finally:
        for one in processes:
            one.kill()  # pytest would wait for it at its end
    assert codes == [0, 0], (codes, [own.read_text()[-3000:] for own in logs])


def _run(program: str | Path, words: list[str], log: Path, environment: dict[str, str]) -> None:
    """Run a program as `python program words` would, in this process."""
    os.setsid()
    with log.open("ab") as file:
        for number in (1, 2):
            os.dup2(file.fileno(), number)
    sys.stdout.reconfigure(line_buffering=True)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(ROOT)
    sys.argv = [str(program), *words]
    if isinstance(program, Path):
        sys.path.insert(0, str(program.parent))
        runpy.run_path(str(program), run_name="__main__")
    else:
        exec(program, {"__name__": "__main__"})
