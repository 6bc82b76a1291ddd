"""A run on a terminal, stopped by the keys that people press."""

from __future__ import annotations

import json
import os
import pty
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

TINY = (
    "--model.patch-size 4 --image-size 16 --model.width 24 --model.depth 2 --model.num-heads 3 "
    "--model.decoder-width 16 --model.decoder-depth 1 --model.decoder-heads 2 --batch 8 "
    "--device cpu --threads 1"
).split()
COMMAND = ["mae", "pretrain", "--data", "my images", "--steps", "100000", *TINY]
ACKNOWLEDGED = "mae: finishing this step, then saving; press Ctrl-C again to stop now"
ERASED = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@pytest.fixture
def here(tmp_path: Path) -> Path:
    (tmp_path / "my images").mkdir()
    draw = np.random.default_rng(0)
    for number in range(12):
        pixels = draw.integers(0, 256, (20, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "my images" / f"{number}.png")
    return tmp_path


class Terminal:
    """A command on a terminal of its own, whose Ctrl-C is a key as anywhere."""

    def __init__(self, command: list[str], folder: Path) -> None:
        self.ours, theirs = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-m", *command],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            cwd=folder,
            preexec_fn=_own_terminal,
            env={**os.environ, "NO_COLOR": "", "TERM": "xterm", "COLUMNS": "100"},
        )
        os.close(theirs)
        self.shown = ""

    def press_ctrl_c(self) -> None:
        os.write(self.ours, b"\x03")

    def read_until(self, text: str) -> None:
        while text not in self.shown:
            assert self._more(), self.shown

    def read_to_the_end(self) -> int:
        while self._more():
            pass
        os.close(self.ours)
        return self.process.wait(timeout=30)

    def _more(self) -> bool:
        try:
            part = os.read(self.ours, 65536)
        except OSError:  # how a terminal says that nobody writes to it any more
            part = b""
        self.shown += part.decode().replace("\r\n", "\n")
        return bool(part)


@pytest.fixture
def start(here: Path) -> Iterator[Callable[[list[str]], Terminal]]:
    """Start commands on terminals of their own; none outlives the test."""
    started: list[Terminal] = []

    def on_terminal(command: list[str]) -> Terminal:
        started.append(Terminal(command, here))
        return started[-1]

    yield on_terminal
    for terminal in started:
        terminal.process.kill()
        terminal.process.wait()


def _own_terminal() -> None:
    import fcntl
    import termios

    os.setsid()
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # standard input is the terminal that keys come from


@pytest.mark.slow
def test_ctrl_c_is_acknowledged_saves_and_ends_in_the_command_that_goes_on(
    here: Path, start: Callable[[list[str]], Terminal]
) -> None:
    terminal = start(COMMAND)
    terminal.read_until("step 1")
    terminal.press_ctrl_c()
    assert terminal.read_to_the_end() == 130

    lines = [ERASED.sub("", line).split("\r")[-1] for line in terminal.shown.splitlines()]
    assert lines.count(ACKNOWLEDGED) == 1
    last = lines[-1]
    stopped = re.fullmatch(r"mae: stopped at step ([\d,]+) of 100,000; to resume: (.*)", last)
    assert stopped is not None, last
    assert shlex.split(stopped[2]) == COMMAND
    step = int(stopped[1].replace(",", ""))
    (saved,) = sorted(p.name for p in (here / "runs" / "my images" / "checkpoints").glob("step-*"))[
        -1:
    ]
    assert saved == f"step-{step:08d}"

    again = start(shlex.split(stopped[2]))
    again.read_until(" left")
    shown = re.findall(r"step ([\d,]+)/100,000", again.shown)
    assert int(shown[0].replace(",", "")) > step
    again.press_ctrl_c()
    assert again.read_to_the_end() == 130


@pytest.mark.slow
def test_a_second_ctrl_c_stops_now(here: Path, start: Callable[[list[str]], Terminal]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2000, 32, 32, 3), dtype=np.uint8)
    np.save(here / "many.npy", pixels)
    slow = "--image-size 32 --model.patch-size 4 --model.depth 8 --batch 2000 --micro-batch 250"
    command = ["mae", "pretrain", "--data", "many.npy", "--steps", "9", *slow.split()]
    terminal = start([*command, "--out", "run", "--threads", "1", "--device", "cpu"])
    terminal.read_until("learning rate")
    time.sleep(1.0)  # within the first step, which takes more than ten seconds
    terminal.press_ctrl_c()
    terminal.read_until(ACKNOWLEDGED)
    time.sleep(0.4)
    pressed = time.monotonic()
    terminal.press_ctrl_c()

    assert terminal.read_to_the_end() == 130
    assert time.monotonic() - pressed < 5
    assert not (here / "run" / "checkpoints").exists()
    assert json.loads((here / "run" / "run.json").read_text())["finished"] is False


@pytest.mark.slow
def test_the_loss_of_the_live_line_is_that_of_the_result_and_of_the_report(
    here: Path, start: Callable[[list[str]], Terminal]
) -> None:
    terminal = start([*COMMAND[:4], "--steps", "44", *TINY])
    assert terminal.read_to_the_end() == 0

    live = re.findall(r"step 44/44 .*?loss ([\d.]+)", terminal.shown)[-1]
    result = re.findall(r"^loss +([\d.]+)$", terminal.shown, flags=re.MULTILINE)
    report = (here / "runs" / "my images" / "report.html").read_text()
    assert result == [live]
    assert f">{live}, mean over the last tenth of the steps<" in report
    assert f": {live} at the end" in report
