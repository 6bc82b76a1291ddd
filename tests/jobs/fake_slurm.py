"""Stand-ins for sbatch, srun and scontrol, for jobs of one node: `python fake_slurm.py NAME …`.

As SLURM does: a batch script has the variables of its first task, without srun; `srun` starts the
tasks; SIGUSR1 to its process stands for the signal that SLURM sends to the tasks of a step, which
the shell of the script does not get; `scontrol requeue` starts the script again under its number.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

NAMES = ("sbatch", "srun", "scontrol")
JOB = "4242"


def install(folder: Path) -> None:
    """Write the stand-ins into a folder for PATH; the number of each process goes there, too."""
    for name in NAMES:
        words = [sys.executable, __file__, name, str(folder)]
        (folder / name).write_text(f'#!/bin/bash\nexec {shlex.join(words)} "$@"\n')
        (folder / name).chmod(0o755)


def sbatch(state: Path, words: list[str]) -> int:
    assert words[0] == "--parsable"
    (state / "script").write_text(words[1])
    start(state)
    print(JOB)
    return 0


def start(state: Path) -> None:
    """Start the script in the background, with what is known of its job."""
    script = Path((state / "script").read_text())
    lines = [line for line in script.read_text().splitlines() if line.startswith("#SBATCH ")]
    asked = {k: v for k, _, v in (shlex.split(line)[1].partition("=") for line in lines)}
    assert asked["--signal"].startswith("USR1@") and "--requeue" in asked
    assert asked["--open-mode"] == "append"
    tasks = asked["--ntasks-per-node"]
    job = {"JOB_ID": JOB, "NTASKS": tasks, "NNODES": asked["--nodes"], "PROCID": "0"}
    job |= {"LOCALID": "0", "JOB_NODELIST": "node[1]"}
    with Path(asked["--output"].replace("%j", JOB)).open("ab") as log:
        subprocess.Popen(
            ["bash", str(script)], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            env={**os.environ, **{f"SLURM_{name}": value for name, value in job.items()}},
            start_new_session=True,
        )  # fmt: skip


def srun(state: Path, words: list[str]) -> int:
    while words[0].startswith("--"):
        words.pop(0)
    tasks = list[subprocess.Popen[bytes]]()
    signal.signal(signal.SIGUSR1, lambda number, _: [task.send_signal(number) for task in tasks])
    for rank in range(int(os.environ["SLURM_NTASKS"])):
        own = {"SLURM_PROCID": f"{rank}", "SLURM_LOCALID": f"{rank}", "SLURM_STEP_ID": "0"}
        tasks.append(subprocess.Popen(words, env={**os.environ, **own}))
    (state / "step").write_text(f"{os.getpid()}")
    code = max(task.wait() for task in tasks)
    with (state / "codes").open("a") as file:
        file.write(f"{code}\n")
    return code


def scontrol(state: Path, words: list[str]) -> int:
    if words[:2] == ["show", "hostnames"]:
        assert words[2] == "node[1]"
        print("127.0.0.1")
    else:
        assert words == ["requeue", JOB]
        start(state)
    return 0


if __name__ == "__main__":
    call = {"sbatch": sbatch, "srun": srun, "scontrol": scontrol}[sys.argv[1]]
    sys.exit(call(Path(sys.argv[2]), sys.argv[3:]))
