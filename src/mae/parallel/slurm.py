"""Write the batch script of a SLURM job and submit it: one task per rank, started by srun.

There is no torchrun in between: SLURM starts, counts and signals the ranks, see
`mae.parallel.processes.this_process`.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from mae.atomic import write_atomic
from mae.errors import REQUEUE, ConfigError
from mae.parallel.processes import SLURM_TASK

FORM = "nodes=2 gpus=8 (or tasks=8) cpus=12 partition=NAME time=24:00:00"
_COUNT = "[1-9][0-9]*"
_FORMS = {
    "nodes": (_COUNT, "a number"),
    "gpus": (f"([A-Za-z0-9_.-]+:)?{_COUNT}", "GPUs per node, as in 8 or a100:8"),
    "tasks": (_COUNT, "processes per node"),
    "cpus": (_COUNT, "cores per process"),
    # With B:, only the shell of the script would get the signal, and no rank would save.
    "signal": ("(USR1|TERM)@[1-9][0-9]*", "USR1@SECONDS"),
}
_INSTEAD = {"ntasks": "tasks", "ntasks-per-node": "tasks", "cpus-per-task": "cpus", "ranks": "gpus"}
_INSTEAD |= {"gpus-per-node": "gpus", "gpus-per-task": "gpus"}
_OWN = ("nodes", "gpus", "tasks", "cpus")
_SUBMIT_S = 120


class Request(NamedTuple):
    """What a job asks SLURM for."""

    nodes: int
    tasks: int
    """Per node."""
    gpus: str = ""
    """Per node, with a type if one was given; empty: none."""
    cpus: int | None = None
    """Per task; None: what SLURM gives."""
    others: Mapping[str, str] = {}
    """Further options of sbatch, without dashes; an empty value is a switch."""


def parse_request(words: Sequence[str]) -> Request:
    """Parse key=value words; a key that is not known here is an option of sbatch.

    Raises:
        ConfigError: for a malformed or repeated word, and without gpus= and tasks=.
    """
    given: dict[str, str] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not re.fullmatch("[a-z][a-z-]*", key) or not value.isprintable():
            raise ConfigError(f"slurm: got {word!r}, expected KEY=VALUE, as in {FORM}")
        if key in _INSTEAD or key in given:
            why = " twice" if key in given else f", expected {_INSTEAD[key]}="
            raise ConfigError(f"slurm: got {key}={why}; write it as in {FORM}")
        form, meaning = _FORMS.get(key, ("", ""))
        if form and not re.fullmatch(form, value):
            raise ConfigError(f"slurm: got {key}={value}, expected {meaning}")
        given[key] = value
    if ("gpus" in given) == ("tasks" in given):
        got = "both" if "gpus" in given else "neither"
        raise ConfigError(f"slurm: got {got} of gpus= and tasks=, expected one: {FORM}")
    gpus = given.get("gpus", "")
    cpus = int(given["cpus"]) if "cpus" in given else None
    return Request(
        nodes=int(given.get("nodes", "1")),
        tasks=int(given["tasks"] if "tasks" in given else gpus.rpartition(":")[2]),
        gpus=gpus,
        cpus=cpus,
        others={key: value for key, value in given.items() if key not in _OWN},
    )


def script_of(request: Request, command: Sequence[str], *, name: Path, folder: Path) -> str:
    """Return the batch script that runs a command on every rank, and requeues itself.

    Args:
        request: what it asks SLURM for.
        command: words of a command of mae, its Python included.
        name: absolute path without suffix, of the log files; its last part names the job.
        folder: working directory.
    """
    log = f"{name}".replace("%", "%%")
    options = {"job-name": name.name, "nodes": f"{request.nodes}"}
    options["ntasks-per-node"] = f"{request.tasks}"
    if request.gpus:
        options["gpus-per-node"] = request.gpus
    if request.cpus:
        options["cpus-per-task"] = f"{request.cpus}"
    options |= {"output": f"{log}-%j.log", "open-mode": "append", "signal": "USR1@120"}
    options |= {"requeue": "", **request.others}
    directives = [
        f"#SBATCH --{key}" + (f"={shlex.quote(value)}" if value else "")
        for key, value in options.items()
    ]
    # Since SLURM 22.05, srun does not read it from the allocation.
    cpus = f" --cpus-per-task={request.cpus}" if request.cpus else ""
    lines = ["#!/bin/bash", *directives, "", f"cd {shlex.quote(f'{folder}')} || exit"]
    lines += [
        f"export {SLURM_TASK}=1  # each task of srun is a rank",
        'MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)',
        "MASTER_PORT=$((20000 + SLURM_JOB_ID % 10000))",
        "export MASTER_ADDR MASTER_PORT",
    ]
    if threads := request.cpus or (0 if request.gpus else 1):
        lines.append(f"export OMP_NUM_THREADS=${{OMP_NUM_THREADS:-{threads}}}")
    return "\n".join([
        *lines,
        "",
        "# --wait: seconds that the other ranks have after the first one has ended.",
        f"srun --kill-on-bad-exit=0 --wait=60{cpus} {shlex.join(command)}",
        "code=$?",
        f'if [ "$code" -eq {REQUEUE} ]; then  # stopped by a signal, the state is saved',
        '  scontrol requeue "$SLURM_JOB_ID"',
        "fi",
        'exit "$code"',
        "",
    ])  # fmt: skip


def submit(script: str, file: Path) -> str:
    """Write a batch script and submit it; return the number of the job.

    Raises:
        ConfigError: if there is no sbatch, or it refuses the job, with its message.
    """
    if shutil.which("sbatch") is None:
        raise ConfigError(
            "slurm: found no sbatch on PATH; submit on a machine of the cluster, or add "
            "--slurm-print to see the script"
        )
    write_atomic(file, script.encode())
    try:
        done = subprocess.run(
            ["sbatch", "--parsable", str(file)],
            capture_output=True, text=True, timeout=_SUBMIT_S, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ConfigError(f"slurm: sbatch cannot be run: {error}") from error
    if done.returncode:
        errors = re.sub("^sbatch: (error: )?", "", done.stderr.strip(), flags=re.MULTILINE)
        reason = "; ".join(errors.splitlines()) or f"exit code {done.returncode}"
        raise ConfigError(f"slurm: sbatch refused {file}: {reason}")
    return done.stdout.split("\n")[0].partition(";")[0].strip()  # a federation: number;cluster
