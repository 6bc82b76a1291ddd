from __future__ import annotations

import os
import pty
import subprocess
import sys

import pytest

from mae import progress as module
from mae.progress import Progress, duration

SCRIPT = """
import sys, time
from mae.progress import Progress
with Progress(quiet="quiet" in sys.argv) as progress:
    progress.note("a [note]: 1.5")
    progress.start(40, images_per_step=8)
    for step in range(1, 41):
        time.sleep(0.01)
        progress.update(step, loss=1 / step)
        if step == 20:
            progress.note("in between")
print("result", *(name for name in ("rich.live", "torch") if name in sys.modules))
"""


class Clock:
    """Stands in for time.monotonic."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(module.time, "monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def run_steps(clock: Clock, *, seconds_a_step: float, steps: int) -> None:
    with Progress() as progress:
        progress.start(steps, images_per_step=8)
        for step in range(1, steps + 1):
            clock.now += seconds_a_step
            progress.update(step, loss=0.5)


def on_terminal(*arguments: str, **environment: str) -> str:
    """Run the script on a terminal of its own and give all it wrote, stdout and stderr."""
    ours, theirs = pty.openpty()
    done = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, *arguments],
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, "NO_COLOR": "", "TERM": "xterm", "COLUMNS": "100", **environment},
    )
    os.close(theirs)
    written = b""
    try:
        while part := os.read(ours, 65536):
            written += part
    except OSError:  # how a terminal says that nobody writes to it any more
        pass
    os.close(ours)
    assert done.wait() == 0
    return written.decode().replace("\r\n", "\n")


def test_plain_lines_come_early_then_every_ten_seconds_and_last(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    run_steps(clock, seconds_a_step=0.5, steps=50)

    lines = capsys.readouterr().err.splitlines()

    assert [line.split("  ")[0] for line in lines] == [
        "step 2/50",
        "step 22/50",
        "step 42/50",
        "step 50/50",
    ]


def test_a_plain_line_tells_rate_numbers_and_time_left(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    run_steps(clock, seconds_a_step=2.0, steps=3)

    first = capsys.readouterr().err.splitlines()[0]

    assert first == "step 1/3  4 images/s  loss 0.5  0:04 left"


def test_a_resumed_job_does_not_count_what_was_done_before_into_its_rate(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with Progress() as progress:
        progress.start(100, at=90, images_per_step=8)
        clock.now += 2.0
        progress.update(91)

    assert "4 images/s  0:18 left" in capsys.readouterr().err


def test_numbers_are_read_only_when_they_are_shown(clock: Clock) -> None:
    class Unread:
        def __float__(self) -> float:
            raise AssertionError("read back from the device in a step that shows nothing")

    with Progress() as progress:
        progress.start(9)
        clock.now += 0.5
        progress.update(1, loss=Unread())


def test_nothing_is_shown_when_quiet(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(quiet=True) as progress:
        progress.note("a note")
        progress.start(1)
        clock.now += 60.0
        progress.update(1)

    assert capsys.readouterr() == ("", "")


def test_a_terminal_gets_a_live_bar_and_notes_above_it() -> None:
    shown = on_terminal()

    assert "\x1b[2K" in shown and "\r" in shown
    assert "step 40/40" in shown and "images/s" in shown and "left" in shown
    assert "in between\n" in shown
    assert "result rich.live" in shown


@pytest.mark.parametrize("environment", [{"NO_COLOR": "1"}, {"TERM": "dumb"}], ids=str)
def test_a_terminal_that_wants_it_plain_gets_plain_lines(environment: dict[str, str]) -> None:
    shown = on_terminal(**environment)

    assert "\x1b" not in shown and "\r" not in shown
    assert "a [note]: 1.5\nin between\nstep 40/40" in shown


def test_a_pipe_gets_plain_lines_and_rich_is_not_imported() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, check=True)

    assert done.stdout == b"result\n"
    assert b"\x1b" not in done.stderr and b"\r" not in done.stderr
    assert done.stderr.startswith(b"a [note]: 1.5\nin between\nstep 40/40")


def test_times_are_written_as_clocks_do() -> None:
    assert [duration(s) for s in (0, 61, 3600 + 2 * 60 + 3)] == ["0:00", "1:01", "1:02:03"]
