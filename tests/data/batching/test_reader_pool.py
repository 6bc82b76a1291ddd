"""Readers that are killed are replaced, and one that hangs is named."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest

from mae.data.batching import reader_pool
from mae.data.batching.batch import training_batch
from mae.data.batching.loader import batches
from mae.data.sources.source import ArraySource, FolderSource
from mae.errors import TrainingError
from tests.data.batching.test_loader import folder_plan, plan_of, same
from tests.images import mixed_folder


class Unanswered(FolderSource):
    """A folder on a file system that does not answer for one of its files."""

    def read(self, index: int) -> bytes:
        path = Path(self._root, self._files[index])
        if path.is_fifo():  # opened for reading, it waits for a writer
            path.open("rb")
        return super().read(index)


def readers() -> list[int]:
    children = multiprocessing.active_children()
    return sorted(child.pid or 0 for child in children if child.name == "mae reader")


@pytest.mark.slow
def test_readers_ignore_the_signals_of_a_stop_and_a_killed_one_is_replaced(
    tmp_path: Path,
) -> None:
    mixed_folder(tmp_path, count=20, broken=1)
    plan, lines, killed = folder_plan(tmp_path), list[str](), list[int]()

    def stop_while_they_start() -> bool:
        for pid in readers():
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
                os.kill(pid, number)
        return False

    feed = batches(
        plan, start=3, stop=19, workers=2, log=lines.append, is_stopped=stop_while_they_start
    )
    for step, batch in enumerate(feed, start=3):
        if step in (5, 11):
            killed.append(readers()[0])
            os.kill(killed[-1], signal.SIGKILL)
            time.sleep(0.2)  # so that the batches made ahead are lost, too
        assert same(batch, training_batch(plan, step)), step

    assert step == 18
    assert len(lines) == 2 and not readers()
    for line, pid in zip(lines, killed, strict=True):
        assert f"readers: process {pid} was killed by SIGKILL while it made the batch of" in line


class Silent(ArraySource):
    """A source that does not answer."""

    def __init__(self, folder: Path) -> None:
        super().__init__(np.zeros((32, 64, 64, 3), np.uint8))
        self.folder = folder

    def read(self, index: int) -> NoReturn:
        (self.folder / f"{os.getpid()}").touch()
        time.sleep(100)
        raise AssertionError


HANGING = """
import sys
from pathlib import Path
from mae.data.batching.loader import batches
from tests.data.batching.test_loader import plan_of
from tests.data.batching.test_reader_pool import Silent
if __name__ == "__main__":
    next(batches(plan_of(Silent(Path(sys.argv[1]))), start=0, stop=9, workers=1))
"""


@pytest.mark.slow
def test_a_reader_that_hangs_ends_with_a_killed_run(tmp_path: Path) -> None:
    (tmp_path / "readers").mkdir()
    (tmp_path / "script.py").write_text(HANGING)
    run = subprocess.Popen(
        [sys.executable, "script.py", "readers"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": os.getcwd()},
    )
    while not (names := os.listdir(tmp_path / "readers")):
        assert run.poll() is None
        time.sleep(0.1)

    run.kill()
    run.wait()

    (reader,), stop = names, time.monotonic() + 20
    while (alive := Path("/proc", reader).exists()) and time.monotonic() < stop:
        time.sleep(0.1)
    assert not alive


@pytest.mark.slow
def test_a_reader_that_hangs_is_named_with_what_it_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mixed_folder(tmp_path, count=8, broken=0)
    source = Unanswered(tmp_path)
    plan = plan_of(source)
    hanging = source.name(int(plan.batch_ids(1)[1][2]))
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / hanging).unlink()
    (tmp_path / hanging).symlink_to(tmp_path / "fifo")

    feed = batches(plan, start=0, stop=2, workers=1)
    next(feed)
    monkeypatch.setattr(reader_pool, "HANG_S", 2)
    with pytest.raises(TrainingError) as hung:
        next(feed)

    assert f"gave no batch in 2 s, of step 2, reading {hanging}; check the disk" in str(hung.value)
    assert not readers()


def test_a_stop_ends_the_wait_for_a_batch() -> None:
    plan = plan_of(ArraySource(np.zeros((16, 28, 28, 3), np.uint8)))

    assert list(batches(plan, start=0, stop=2, workers=1, is_stopped=lambda: True)) == []
    assert not readers()
