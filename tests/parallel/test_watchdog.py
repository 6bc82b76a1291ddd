"""A rank that hangs, is stopped or is killed ends all ranks, and is named."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from socket import socket
from typing import NamedTuple

import pytest

from mae.errors import ConfigError
from mae.parallel.watchdog import hang_timeout_s

# Rank 1 fails after 5 steps of 0.1 s. As in the command, rank 0 alone prints an error.
SCRIPT = """
import os, signal, sys, time, torch
from mae.errors import MaeError
from mae.parallel.processes import open_communicator
rank = int(os.environ["RANK"])
def in_a_read():
    time.sleep(1000)
try:
    with open_communicator(timeout_s=60) as ranks:
        for step in range(1, 1000):
            if rank == 1 and step == 6:
                {fail}
            ranks.all_reduce(torch.ones(2))
            ranks.step_done(step)
            time.sleep(0.1)
except MaeError as error:
    if rank == 0:
        print("mae:", error, file=sys.stderr)
    sys.exit(error.exit_code)
"""
TIMEOUT_S = 2.0


class Ended(NamedTuple):
    """How two ranks ended."""

    codes: list[int]
    errors: list[str]
    seconds: float
    """From the failure of rank 1 to the end of the last rank."""


def ended(folder: Path, fail: str) -> Ended:
    (folder / "script.py").write_text(SCRIPT.format(fail=f"open('at', 'w').close(); {fail}"))
    with socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    job = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    job |= {"OMP_NUM_THREADS": "1", "MAE_RANK_TIMEOUT_S": str(TIMEOUT_S)}
    processes = [
        subprocess.Popen(
            [sys.executable, "script.py"],
            env=os.environ | job | {"RANK": rank, "LOCAL_RANK": rank},
            cwd=folder,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in "01"
    ]
    errors = [process.communicate(timeout=120)[1] for process in processes]
    began = (folder / "at").stat().st_mtime
    return Ended([process.wait() for process in processes], errors, time.time() - began)


NAMED = "mae: ranks: rank 1 hung: step 6 was not done in 2 s; the stacks above show where"


@pytest.mark.slow
def test_a_stopped_rank_is_named_and_none_is_left(tmp_path: Path) -> None:
    found = ended(tmp_path, "os.kill(os.getpid(), signal.SIGSTOP)")

    assert found.codes == [1, -signal.SIGKILL]
    assert found.errors[0].count("mae: ranks: ") == 1 and NAMED in found.errors[0]
    assert "in all_reduce" in found.errors[0].partition(NAMED)[0]
    assert found.seconds < TIMEOUT_S + 5


@pytest.mark.slow
def test_every_rank_prints_its_stacks_and_the_one_that_hangs_in_python_is_named(
    tmp_path: Path,
) -> None:
    found = ended(tmp_path, "in_a_read()")

    assert found.codes[0] == 1 and found.codes[1] != 0
    assert NAMED in found.errors[0] and NAMED not in found.errors[1]
    assert "in all_reduce" in found.errors[0]
    assert "rank 1: no step in 2 s; its threads:" in found.errors[1]
    assert "in in_a_read" in found.errors[1]


@pytest.mark.slow
def test_a_killed_rank_is_named_within_seconds(tmp_path: Path) -> None:
    found = ended(tmp_path, "os.kill(os.getpid(), signal.SIGKILL)")

    assert found.codes == [1, -signal.SIGKILL]
    assert found.errors[0] == (
        "mae: ranks: rank 1 ended or did not answer; see its messages, and start all of them "
        "again\n"
    )
    assert found.seconds < 10


@pytest.mark.parametrize("text", ["soon", "0", "-3", "inf", "nan"])
def test_a_timeout_that_is_none_is_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAE_RANK_TIMEOUT_S", text)

    with pytest.raises(ConfigError, match=f"MAE_RANK_TIMEOUT_S: expected seconds .* '{text}'"):
        hang_timeout_s()


def test_the_timeout_is_ten_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MAE_RANK_TIMEOUT_S", raising=False)

    assert hang_timeout_s() == 600
