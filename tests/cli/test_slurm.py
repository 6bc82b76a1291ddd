"""The options --slurm and --slurm-print of the command."""

from __future__ import annotations

import json
import os
import shlex
import sys
from pathlib import Path

import pytest

from mae.cli.main import main
from mae.cli.slurm import SlurmWords, split_words
from tests.parallel.test_slurm import directives, stand_in


def test_the_words_of_slurm_end_where_those_of_mae_go_on() -> None:
    words = "--data d --slurm nodes=2 gpus=8 time=1:00 --batch=64 lr=1e-3 --slurm-print".split()

    slurm, others = split_words(words)

    assert slurm == SlurmWords(["nodes=2", "gpus=8", "time=1:00"], only_print=True)
    assert others == ["--data", "d", "--batch=64", "lr=1e-3"]
    assert split_words(["--slurm=nodes=2", "gpus=8", "d"]) == (
        SlurmWords(["nodes=2", "gpus=8"], only_print=False), ["d"],
    )  # fmt: skip
    assert split_words(others) == (None, others)


def test_a_job_is_submitted_and_the_lines_say_how_to_watch_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stand_in(tmp_path, "sbatch", "echo 4242")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.chdir(tmp_path)
    words = "finetune --data d --weights w --out runs/a --slurm gpus=8 cpus=12 --batch 64"

    assert main([*words.split(), "--json"]) == 0

    out = f"{tmp_path}/runs/a"
    expected = {"job": "4242", "script": f"{out}.sbatch", "log": f"{out}-4242.log"}
    assert json.loads(capsys.readouterr().out) == expected
    script = Path(f"{out}.sbatch").read_text()
    command = shlex.split(script[script.index("\nsrun") :].splitlines()[1])
    rest = "mae finetune --data d --weights w --out runs/a --batch 64 --json".split()
    assert command[command.index(sys.executable) :][-len(rest) - 1 :] == ["-m", *rest]
    assert directives(script)["job-name"] == "a"

    assert main(words.split()) == 0
    shown = capsys.readouterr().out
    assert f"squeue -j 4242; tail -F {out}-4242.log" in shown and "scancel 4242" in shown
    assert "without cpus=" not in shown


def test_the_script_can_be_seen_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)

    assert main("pretrain --data d --slurm tasks=2 --slurm-print".split()) == 0

    shown = capsys.readouterr().out
    assert shown.startswith("#!/bin/bash\n#SBATCH --job-name=pretrain\n")
    assert "--slurm" not in shown and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("pretrain --data d --slurm", "slurm: expected KEY=VALUE words after --slurm, as in nodes"),
        ("pretrain --data d --slurm-print", "slurm: expected KEY=VALUE words after --slurm"),
        ("pretrain --data d --slurm gpus=8 batch=64", "slurm: got batch=64, an option of mae; put"),
        ("pretrain --data d --slurm gpus=8 --ranks 2", "ranks: got --ranks with --slurm"),
        ("pretrain --slurm gpus=8", "pretrain: expected --data"),
        ("pretrain --data d --epochs=-3 --slurm gpus=8", "epochs: expected a number above 0"),
        ("pretrain --data d --bach 3 --slurm gpus=8", "unknown option --bach; did you mean"),
        (
            "report r --slurm gpus=8",
            "slurm: report takes one process; --slurm goes with detect evaluate,",
        ),
        ("pretrain --data d --slurm gpus=8", "slurm: found no sbatch on PATH"),
    ],
)
def test_what_cannot_be_submitted_is_one_line(
    words: str, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)

    assert main(words.split()) == 2

    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.startswith(f"mae: {line}") and shown.err.count("\n") == 1
    assert not list(tmp_path.iterdir())
