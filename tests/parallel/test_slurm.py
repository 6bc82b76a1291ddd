"""The batch script of a SLURM job, and the rank that a task of srun is."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path

import pytest

from mae.errors import ConfigError
from mae.parallel.processes import ProcessInfo, this_process
from mae.parallel.slurm import Request, parse_request, script_of, submit

WORDS = "nodes=8 gpus=a100:4 cpus=12 partition=gpu time=1-00:00:00".split()


def script(*words: str, out: str = "/runs/my run") -> str:
    command = ["/env/bin/python", "-m", "mae", "pretrain", "--data", "it's 5% $HOME"]
    return script_of(parse_request(words), command, name=Path(out), folder=Path("/somewhere/a b"))


def directives(text: str) -> dict[str, str]:
    """Read the options of a script as sbatch does, by the rules of a shell for quotes."""
    lines = [line for line in text.splitlines() if line.startswith("#SBATCH ")]
    options = [shlex.split(line)[1].removeprefix("--").partition("=") for line in lines]
    return {key: value for key, _, value in options}


def test_words_are_what_a_job_asks_for() -> None:
    assert parse_request(WORDS) == Request(
        8, 4, "a100:4", 12, {"partition": "gpu", "time": "1-00:00:00"}
    )
    assert parse_request(["tasks=3", "exclusive="]) == Request(1, 3, others={"exclusive": ""})


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("gpus", "got 'gpus', expected KEY=VALUE, as in nodes="),
        ("gpus=8 --time=3", "got '--time=3', expected KEY=VALUE"),
        ("gpus=eight", "got gpus=eight, expected GPUs per node, as in 8 or a100:8"),
        ("gpus=8 nodes=0", "got nodes=0, expected a number"),
        ("nodes=8", "got neither of gpus= and tasks=, expected one: "),
        ("gpus=8 tasks=8", "got both of gpus= and tasks=, expected one: "),
        ("gpus=8 ntasks=8", "got ntasks=, expected tasks="),
        ("gpus=8 gpus=8", "got gpus= twice"),
        ("gpus=8 signal=B:USR1@60", "got signal=B:USR1@60, expected USR1@SECONDS"),
    ],
)
def test_malformed_words_are_one_line(words: str, line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_request(words.split())

    assert f"{caught.value}".startswith(f"slurm: {line}") and "\n" not in f"{caught.value}"


def test_a_value_with_a_second_line_cannot_add_to_the_script() -> None:
    with pytest.raises(ConfigError, match="expected KEY=VALUE"):
        parse_request(["gpus=8", "comment=a\nrm -r /"])


def test_the_script_asks_for_a_task_per_gpu_and_for_a_signal_that_ranks_get() -> None:
    asked = directives(script(*WORDS, "comment=a 'b' #c"))

    assert asked == {
        "job-name": "my run", "nodes": "8", "ntasks-per-node": "4", "gpus-per-node": "a100:4",
        "cpus-per-task": "12", "output": "/runs/my run-%j.log", "open-mode": "append",
        "signal": "USR1@120", "requeue": "", "partition": "gpu", "time": "1-00:00:00",
        "comment": "a 'b' #c",
    }  # fmt: skip


def test_own_options_replace_those_of_the_script() -> None:
    asked = directives(script("gpus=8", "signal=USR1@600", "job-name=x", out="/runs/5%a"))

    assert (asked["signal"], asked["job-name"]) == ("USR1@600", "x")
    assert asked["output"] == "/runs/5%%a-%j.log"
    assert "cpus-per-task" not in asked and "gpus-per-node" not in directives(script("tasks=2"))


@pytest.mark.parametrize("code", [0, 2, 75])
def test_the_script_starts_the_command_in_its_folder_and_requeues_after_75(
    code: int, tmp_path: Path
) -> None:
    (tmp_path / "a b").mkdir()
    stand_in(tmp_path, "srun", 'printf "%s|" "$PWD" "$MAE_SLURM" "$OMP_NUM_THREADS" "$@"\n'
             f'echo "$MASTER_ADDR:$MASTER_PORT"; exit {code}')  # fmt: skip
    stand_in(tmp_path, "scontrol", '[ "$1" = show ] && printf "n07\\nn08\\n" || echo "again $2"')
    text = script("tasks=2").replace("/somewhere", str(tmp_path))
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    environment |= {"SLURM_JOB_ID": "70123", "SLURM_JOB_NODELIST": "n[07-08]"}
    environment.pop("OMP_NUM_THREADS", None)

    done = subprocess.run(
        ["bash"], input=text, env=environment, capture_output=True, text=True, check=False
    )

    words = "--kill-on-bad-exit=0|--wait=60|/env/bin/python|-m|mae|pretrain|--data"
    first = f"{tmp_path}/a b|1|1|{words}|it's 5% $HOME|n07:20123\n"
    assert done.stdout == first + "again 70123\n" * (code == 75)
    assert (done.returncode, done.stderr) == (code, "")


def stand_in(folder: Path, name: str, body: str) -> None:
    (folder / name).write_text(f"#!/bin/bash\n{body}\n")
    (folder / name).chmod(0o755)


def test_a_job_is_submitted_by_its_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(tmp_path, "sbatch", '[ "$1" = --parsable ] && grep -q hello "$2" && echo "4242;far"')
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)

    assert submit("# hello\n", tmp_path / "runs" / "a.sbatch") == "4242"

    assert (tmp_path / "runs" / "a.sbatch").read_text() == "# hello\n"


def test_the_message_of_sbatch_is_passed_on_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    message = (
        "sbatch: error: invalid partition specified: gpux\n"
        "sbatch: error: Batch job submission failed: Invalid partition name specified"
    )
    stand_in(tmp_path, "sbatch", f"echo '{message}' >&2; exit 1")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)

    with pytest.raises(ConfigError) as caught:
        submit("", tmp_path / "a.sbatch")

    assert f"{caught.value}" == (
        f"slurm: sbatch refused {tmp_path}/a.sbatch: invalid partition specified: gpux; Batch job "
        "submission failed: Invalid partition name specified"
    )


def test_without_a_scheduler_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))

    with pytest.raises(ConfigError, match="slurm: found no sbatch on PATH; submit on a machine"):
        submit("", tmp_path / "a.sbatch")

    assert not list(tmp_path.iterdir())


# Ranks

TASK = {
    "SLURM_NTASKS": "16", "SLURM_PROCID": "11", "SLURM_LOCALID": "3", "SLURM_NNODES": "2",
    "MASTER_ADDR": "n07", "MASTER_PORT": "20123",
}  # fmt: skip


@pytest.fixture
def task(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name, text in TASK.items():
        monkeypatch.setenv(name, text)
    return monkeypatch


def test_a_task_of_the_script_is_a_rank(task: pytest.MonkeyPatch) -> None:
    task.setenv("MAE_SLURM", "1")

    assert this_process() == ProcessInfo(11, 16, 3, 8)


def test_a_shell_in_a_job_is_one_process(task: pytest.MonkeyPatch) -> None:
    assert this_process() == ProcessInfo()


@pytest.mark.parametrize(
    ("name", "text"), [("SLURM_PROCID", "16"), ("SLURM_LOCALID", ""), ("MASTER_ADDR", "")]
)
def test_half_of_what_srun_sets_is_one_line(name: str, text: str, task: pytest.MonkeyPatch) -> None:
    task.setenv("MAE_SLURM", "1")
    task.setenv(name, text)

    with pytest.raises(ConfigError, match=f"SLURM_NTASKS is '16', but got {name}={text}, expected"):
        this_process()
