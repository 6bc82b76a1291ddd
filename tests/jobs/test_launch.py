"""Ranks on one machine: --ranks, exit codes, signals, and no process left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from socket import socket
from types import SimpleNamespace

import pytest

from mae.cli.main import main
from mae.cli.verbs.shared import MULTI_PROCESS_VERBS
from mae.errors import ConfigError
from mae.parallel.launch import Outcome, _ended, _Records, _stopped
from mae.parallel.processes import open_communicator

# Ranks that do not import torch, to be fast. Each prints its number and its process.
PROGRAM = """
import os, signal, sys, time
from mae.parallel.launch import end_rank, launch, start_rank
if "RANK" not in os.environ:
    outcome = launch(sys.argv[1:], ranks=2, threads=1, program=[__file__])
    print(outcome.message, end="", file=sys.stderr)
    raise SystemExit(outcome.exit_code)
from mae.runs.signals import StopSignal
start_rank()
rank = int(os.environ["RANK"])
line = f"{rank} {os.getpid()} {os.environ['OMP_NUM_THREADS']}\\n"
if sys.argv[1] == "kill":
    os.write(1, line.encode())
    time.sleep(0.5 if rank else 60)
    os.kill(os.getpid(), signal.SIGKILL)
with StopSignal() as stop:
    os.write(1, line.encode())
    while stop.requested is None:
        time.sleep(0.01)
    time.sleep(float(sys.argv[1 + rank]))
    os.write(1, b"saved\\n")
sys.exit(end_rank(stop.requested))
"""
Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start programs that ignore SIGHUP; none outlives the test."""
    started = []
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}

    def start_program(*words: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            ["nohup", sys.executable, *words],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env=environment,
        )  # fmt: skip
        started.append(process)
        return process

    yield start_program
    for process in started:
        process.kill()
        process.communicate(timeout=60)


@pytest.fixture
def program(tmp_path: Path) -> str:
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    return str(path)


def pids_of(process: subprocess.Popen[str]) -> list[int]:
    """Wait until both ranks run; each says on how many threads."""
    assert process.stdout is not None
    lines = [process.stdout.readline().split() for _ in range(2)]
    assert [threads for _, _, threads in lines] == ["1", "1"]
    ranks = {rank: int(pid) for rank, pid, _ in lines}
    return [ranks["0"], ranks["1"]]


def children_of(process: subprocess.Popen[str]) -> list[int]:
    """Wait until both ranks are started, but not until they have done anything."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    while len(pids := [int(each) for each in children.read_text().split()]) < 2:
        time.sleep(0.01)
    return pids


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def seconds_until_gone(pids: Sequence[int]) -> float:
    start = time.monotonic()
    while any(map(is_running, pids)) and time.monotonic() - start < 20:
        time.sleep(0.02)
    return time.monotonic() - start


# Signals


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 75), (signal.SIGUSR1, 75), (signal.SIGINT, 130)]
)
def test_a_signal_to_the_launcher_lets_every_rank_save(
    number: int, code: int, start: Start, program: str
) -> None:
    launcher = start(program, "0", "0.7")  # rank 0 ends before rank 1
    pids = pids_of(launcher)

    launcher.send_signal(signal.SIGHUP)  # as if its terminal was closed; ignored, see `start`
    for _ in range(2):  # as `timeout` sends it: to its child, then to the group
        launcher.send_signal(number)

    output, errors = launcher.communicate(timeout=120)
    assert output == "saved\nsaved\n"
    assert launcher.returncode == code
    again = "press Ctrl-C again" if number == signal.SIGINT else "signal again"
    assert errors == f"mae: stopping all ranks; {again} to stop now\n"
    assert not any(map(is_running, pids))


@pytest.mark.slow
def test_a_second_signal_ends_all_ranks_at_once(start: Start, program: str) -> None:
    launcher = start(program, "60", "60")
    pids = pids_of(launcher)
    launcher.send_signal(signal.SIGTERM)
    time.sleep(0.5)

    launcher.send_signal(signal.SIGTERM)

    assert launcher.wait(timeout=20) == 75
    assert seconds_until_gone(pids) < 10


@pytest.mark.slow
def test_a_rank_that_has_stopped_does_not_cut_short_one_that_saves(
    start: Start, program: str
) -> None:
    launcher = start(program, "0", "0.7")

    for pid in pids_of(launcher):
        os.kill(pid, signal.SIGTERM)

    output, _ = launcher.communicate(timeout=120)
    assert (output, launcher.returncode) == ("saved\nsaved\n", 75)


# Ends


@pytest.mark.slow
@pytest.mark.parametrize("find", [pids_of, children_of], ids=["running", "starting"])
def test_ranks_end_when_their_launcher_is_killed(
    find: Callable[[subprocess.Popen[str]], list[int]], start: Start, program: str
) -> None:
    launcher = start(program, "60", "60")
    pids = find(launcher)

    launcher.kill()

    assert seconds_until_gone(pids) < 10


@pytest.mark.slow
def test_ranks_end_when_torchrun_is_killed(start: Start, program: str) -> None:
    words = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", program)
    launcher = start(*words, "60", "60")
    pids = pids_of(launcher)

    launcher.kill()

    assert seconds_until_gone(pids) < 10


@pytest.mark.slow
def test_a_killed_rank_ends_all_and_is_named(start: Start, program: str) -> None:
    launcher = start(program, "kill", "0")
    pids = pids_of(launcher)

    _, errors = launcher.communicate(timeout=120)

    end = f"rank 1 (process {pids[1]}) was ended by SIGKILL (often: out of memory)"
    assert errors == f"ranks: {end}; the same command starts all ranks again"
    assert launcher.returncode == 1
    assert not any(map(is_running, pids))


def records(codes: dict[int, int], lost: dict[int, str] | None = None) -> _Records:
    return _Records(codes, lost or {})


def died(**signals: int) -> dict[int, SimpleNamespace]:
    return {
        int(name[1:]): SimpleNamespace(
            exitcode=code, pid=7, signal_name=lambda code=code: signal.Signals(-code).name
        )
        for name, code in signals.items()
    }


@pytest.mark.parametrize("code", [1, 2, 75, 130])
def test_the_code_of_the_lowest_rank_that_failed_is_that_of_the_command(code: int) -> None:
    assert _ended(records({0: code, 1: 1}), {}) == (code, "")
    assert _ended(records({0: 0, 1: code}), {}) == (code, "")
    assert _ended(records({0: 1, 1: code}, {0: "lost 1"}), {}) == (code, "")


def test_a_rank_that_aborts_after_the_work_is_no_failure() -> None:
    assert _ended(records({0: 0}), died(r1=-signal.SIGABRT)) == (0, "")
    assert _ended(records({0: 0, 1: 0}), died(r1=-signal.SIGABRT)) == (0, "")


def test_the_rank_that_was_killed_is_named_and_not_those_it_took_along() -> None:
    code, line = _ended(
        records({2: 1}, {2: "lost"}), died(r0=-signal.SIGTERM, r1=-signal.SIGSEGV, r2=1)
    )

    assert code == 1
    assert line.startswith("ranks: rank 1 (process 7) was ended by SIGSEGV; the same command")


def test_ranks_that_lost_each_other_say_so_once() -> None:
    assert _ended(records({0: 1, 1: 1}, {0: "after 60 s", 1: "x"}), {}) == (1, "after 60 s")


def test_a_stop_is_judged_by_what_the_ranks_recorded() -> None:
    def judge(codes: dict[int, int], waited_s: float = 1.0) -> tuple[int, str]:
        return _stopped(records(codes), signal.SIGTERM, ranks=2, waited_s=waited_s)

    assert judge({0: 75, 1: 75}) == (75, "")
    assert judge({0: 1, 1: 1}) == (1, "")  # could not be saved
    assert judge({0: 0, 1: 0}) == (0, "")  # the signal came after the end
    assert judge({}) == (75, "stopped")  # before there was anything to save
    code, line = judge({1: 0}, waited_s=30.5)
    assert code == 1 and "rank 0 had not ended 30 s after SIGTERM and was killed" in line


# The command


@pytest.mark.slow
def test_ctrl_c_while_ranks_start_shows_no_traceback(tmp_path: Path, start: Start) -> None:
    launcher = start("-m", "mae", "evaluate", str(tmp_path), f"--data={tmp_path}", "--ranks=2")
    pids = children_of(launcher)

    launcher.send_signal(signal.SIGINT)

    _, errors = launcher.communicate(timeout=120)
    line = "mae: stopping all ranks; press Ctrl-C again to stop now\nmae: stopped\n"
    assert (errors, launcher.returncode) == (line, 130)
    # The elastic launcher may not know a rank yet that it has just forked; that rank ends by
    # itself in `end_with_parent`, which it calls while it starts.
    assert seconds_until_gone(pids) < 10


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("evaluate w --data d --ranks 0", "ranks: got 0, expected at least 1"),
        ("evaluate w --data d --ranks=-2", "ranks: got -2, expected at least 1"),
        ("evaluate w --data d --ranks two", "ranks: expected a whole number, got 'two'"),
        ("evaluate w --data d --ranks 99999", "ranks: got 99999 for "),
        ("report r --ranks 2", "ranks: report takes one process, got 2; start it without --ranks"),
    ],
)
def test_ranks_that_cannot_be_are_one_line(
    words: str, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words.split()) == 2

    assert capsys.readouterr().err.startswith(f"mae: {line}")


def test_the_page_names_every_verb_that_takes_ranks() -> None:
    page = (Path(__file__).parents[2] / "docs" / "ranks.md").read_text()

    assert {verb for verb in MULTI_PROCESS_VERBS if f"`{verb}`" in page} == MULTI_PROCESS_VERBS


def test_ranks_beside_torchrun_must_be_as_many(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    be_first_of_three(monkeypatch, port=1)

    assert main("evaluate w --data d --ranks 2".split()) == 2

    assert "ranks: got --ranks 2 in one of 3 processes of torchrun" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("outcome", "output", "errors"),
    [
        (Outcome(75), "", ""),
        (
            Outcome(1, "ranks: rank 1 was ended"),
            '{"error": "ranks: rank 1 was ended", "exit_code": 1}\n',
            "mae: ranks: rank 1 was ended\n",
        ),
    ],
)
def test_the_launcher_prints_only_what_no_rank_has_printed(
    outcome: Outcome,
    output: str,
    errors: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given: dict[str, object] = {}

    def launch(words: Sequence[str], **how: object) -> Outcome:
        given.update(how, words=words)
        return outcome

    monkeypatch.setattr("mae.parallel.launch.launch", launch)
    monkeypatch.setattr("mae.planning.hardware.cores", lambda: 7)
    words = "evaluate w --data d --ranks 3 --json".split()

    assert main(words) == outcome.exit_code

    assert given == {"words": words, "ranks": 3, "threads": 2}
    assert capsys.readouterr() == (output, errors)


def test_the_help_of_a_verb_that_takes_ranks_lists_them(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["evaluate", "--help"]) == main(["report", "--help"]) == 0

    assert capsys.readouterr().out.count("--ranks INT") == 1


def test_a_port_in_use_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        be_first_of_three(monkeypatch, port=port)

        with pytest.raises(ConfigError, match=f"127.0.0.1:{port} is in use, by ") as caught:
            open_communicator(timeout_s=10).__enter__()

    assert "\n" not in str(caught.value)


def be_first_of_three(monkeypatch: pytest.MonkeyPatch, *, port: int) -> None:
    here = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 3, "MASTER_ADDR": "127.0.0.1"}
    for name, value in (here | {"MASTER_PORT": port}).items():
        monkeypatch.setenv(name, str(value))
