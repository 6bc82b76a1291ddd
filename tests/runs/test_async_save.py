"""Saves in a thread: the values of their step, one at a time, and no failure is lost."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from mae.errors import TrainingError
from mae.runs.checkpoint import NotSaved, latest_checkpoint, load_checkpoint
from mae.train import saver as module
from mae.train.saver import CheckpointSaver
from tests.runs.async_saver import SAVES, holds, run_of, set_values
from tests.runs.killed_saver import fresh_state


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """A save writes only once this is set."""
    opened, real = threading.Event(), module.save_checkpoint

    def save(*args: Any, **more: Any) -> Path:
        opened.wait(10)
        return real(*args, **more)

    monkeypatch.setattr(module, "save_checkpoint", save)
    return opened


def test_a_save_holds_the_values_of_its_step(tmp_path: Path, gate: threading.Event) -> None:
    state, said = fresh_state(), list[str]()
    with CheckpointSaver(run_of(tmp_path, said), state) as saver:
        for step in range(1, SAVES + 1):
            state.step = step
            set_values(state, step)
            saver.save(state)
            set_values(state, -1.0)
            assert latest_checkpoint(tmp_path) == (
                None if step == 1 else tmp_path / f"step-{step - 1:08d}"
            )
            gate.set()
            saver.poll(wait=True)
            gate.clear()

    found = []
    for path in sorted(tmp_path.iterdir(), reverse=True):
        load_checkpoint(tmp_path, state, log=said.append)
        found += [state.step] * holds(state, state.step)
        path.rename(path.with_suffix(".seen"))
    assert found == list(range(SAVES, 0, -1)) and said == []


def test_a_save_waits_for_the_one_before(tmp_path: Path, gate: threading.Event) -> None:
    state = fresh_state()
    with CheckpointSaver(run_of(tmp_path, []), state) as saver:
        for step in (1, 2):
            state.step = step
            threading.Timer(0.05, gate.set).start()
            saver.save(state)
        assert [path.name for path in tmp_path.glob("step-*")][:1] == ["step-00000001"]


def test_leaving_waits_for_the_save(tmp_path: Path, gate: threading.Event) -> None:
    state = fresh_state()
    with pytest.raises(KeyboardInterrupt), CheckpointSaver(run_of(tmp_path, []), state) as saver:
        saver.save(state)
        threading.Timer(0.05, gate.set).start()
        raise KeyboardInterrupt

    assert latest_checkpoint(tmp_path) == tmp_path / "step-00000000"


def test_a_stop_saves_its_own_step_after_the_one_in_the_thread(
    tmp_path: Path, gate: threading.Event
) -> None:
    state = fresh_state()
    with CheckpointSaver(run_of(tmp_path, []), state) as saver:
        saver.save(state)
        state.step = 1
        gate.set()
        saver.save_or_raise(state)
        names = sorted(path.name for path in tmp_path.iterdir())

    assert names == ["step-00000000", "step-00000001"]


def test_a_failure_is_reported_after_the_next_step_and_the_third_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> Path:
        raise NotSaved("no space left")

    monkeypatch.setattr(module, "save_checkpoint", full)
    state, said = fresh_state(), list[str]()
    with CheckpointSaver(run_of(tmp_path, said), state) as saver:
        for number in (1, 2):
            saver.save(state)
            assert len(said) == number - 1
            saver.poll(wait=True)
            assert said[number - 1 :] == ["no space left; training continues"]
        saver.save(state)
        with pytest.raises(NotSaved, match="no space left"):
            saver.poll(wait=True)


def test_values_that_are_not_finite_end_the_run(tmp_path: Path) -> None:
    state = fresh_state()
    set_values(state, float("nan"))
    with CheckpointSaver(run_of(tmp_path, []), state) as saver:
        saver.save(state)
        with pytest.raises(TrainingError, match=r"not saved: 1 tensors are not finite, \['weight'"):
            saver.poll(wait=True)

    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_two_ranks_save_in_their_threads_while_they_go_on(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "tests.runs.async_saver", str(tmp_path)],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    steps = list(range(1, SAVES + 1))
    assert json.loads(done.stdout) == {"said": [[], []], "found": [steps, steps]}
