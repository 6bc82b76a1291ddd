"""Ranks that were not started alike end with one line, before they write anything."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from mae.errors import ConfigError
from mae.parallel import agreement
from mae.parallel.processes import (
    SINGLE_PROCESS,
    Communicator,
    ProcessInfo,
    require_agreement,
)


class First(Communicator):
    """Rank 0 of two; the other answers as told."""

    def __init__(self, answers: Sequence[object]) -> None:
        super().__init__(ProcessInfo(0, 2, 0))
        self.answers = list(answers)

    def all_gather(self, mine: Any) -> list[Any]:
        answer = self.answers.pop(0)
        return [mine, {**mine, **answer} if isinstance(answer, dict) else answer]


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("data", "ranks: rank 1 has another data than rank 0: changed, not same; start all ranks"),
        ("version of mae", "rank 1 has another version of mae than rank 0: changed, not "),
        ("version of torch", "rank 1 has another version of torch than rank 0: changed, not 2."),
    ],
)
def test_a_fact_that_differs_is_named_with_rank_and_values(name: str, line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        require_agreement(First([{name: "changed"}]), {"data": lambda: "same", "seed": 0})

    assert line in str(caught.value) and "\n" not in str(caught.value)


def test_a_long_value_is_shortened() -> None:
    with pytest.raises(ConfigError, match=r": b{60}\.\.\., not a{60}\.\.\.; start"):
        require_agreement(First([{"arguments": "b" * 900}]), {"arguments": "a" * 900})


def test_ranks_that_agree_go_on_and_leave_no_file(tmp_path: Path) -> None:
    require_agreement(First([{}, "", True]), {"seed": 3}, folder=tmp_path / "run")

    assert not list((tmp_path / "run").iterdir())


def test_a_folder_that_another_rank_does_not_see_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"rank 1 does not see {tmp_path} as rank 0 does; choose"):
        require_agreement(First([{}, "", False]), {}, folder=tmp_path)

    assert not list(tmp_path.iterdir())


def test_a_rank_waits_a_while_for_a_file_of_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agreement, "_APPEARS_WITHIN_S", 0.3)
    second = First([{}, "", False])
    second.process, second.is_main_process = ProcessInfo(1, 2, 1), False
    seen: list[object] = []
    monkeypatch.setattr(second, "on_main", lambda make: "gone")
    monkeypatch.setattr(second, "all_gather", lambda mine: seen.append(mine) or [mine, mine])

    with pytest.raises(ConfigError, match="rank 0 does not see"):
        require_agreement(second, {}, folder=tmp_path)

    assert seen[1] is False


def test_one_process_computes_nothing(tmp_path: Path) -> None:
    require_agreement(SINGLE_PROCESS, {"data": lambda: 1 / 0}, folder=tmp_path / "none")

    assert not list(tmp_path.iterdir())


RANK = """
import os, sys
from pathlib import Path
from mae.cli import main as command
from mae.parallel import agreement
from mae.parallel.processes import open_communicator, require_agreement
agreement._APPEARS_WITHIN_S = 0.2
def verb(words):
    if os.environ["RANK"] == "1":
        os.chdir("/")  # as on another machine
    with open_communicator(timeout_s=60) as ranks:
        require_agreement(ranks, {"data": "same"}, folder=Path("run"))
command._run = verb
sys.exit(command.main(["verb", "--json"]))
"""


@pytest.mark.slow
def test_one_line_of_rank_0_ends_all(tmp_path: Path) -> None:
    ended = launched(RANK, folder=tmp_path)

    assert ended.returncode == 2
    assert ended.stderr.startswith("mae: ranks: rank 1 does not see run as rank 0 does; choose an ")
    assert ended.stderr.count("\n") == 1
    assert json.loads(ended.stdout) == {"error": ended.stderr[5:-1], "exit_code": 2}


def launched(program: str, *, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a program as two ranks of our launcher."""
    (folder / "program.py").write_text(program)
    start = (
        "import sys; from mae.parallel.launch import launch; "
        "sys.exit(launch([], ranks=2, threads=1, program=sys.argv[1:]).exit_code)"
    )
    return subprocess.run(
        [sys.executable, "-c", start, str(folder / "program.py")],
        cwd=folder, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
