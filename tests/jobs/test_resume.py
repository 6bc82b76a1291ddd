"""A run that was killed or stopped ends bitwise where an undisturbed one ends."""

from __future__ import annotations

import json
import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest

from mae.errors import ConfigError
from mae.jobs.pretrain import pretrain
from tests.jobs.kill_storm import CONFIG, end_state, images, start, storm

pytestmark = pytest.mark.slow


def test_six_kills_at_random_moments_change_nothing(tmp_path: Path) -> None:
    found = storm(tmp_path, 6)

    assert (found.kills, found.in_save) == (6, 3)
    assert found.equal


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGINT"])
def test_a_signal_saves_and_the_same_command_goes_on(tmp_path: Path, name: str) -> None:
    start(tmp_path / "whole").join()
    process = start(tmp_path / "run")
    while not list((tmp_path / "run" / "checkpoints").glob("step-*")):
        time.sleep(0.01)
        assert process.is_alive()
    os.kill(process.pid or 0, getattr(signal, name))
    process.join()
    stopped = end_state(tmp_path / "run")
    again = start(tmp_path / "run")
    again.join()

    assert process.exitcode != 0
    assert not stopped.startswith("step-00000060")
    assert end_state(tmp_path / "run") == end_state(tmp_path / "whole")


def test_the_log_of_a_resumed_run_has_each_step_once(tmp_path: Path) -> None:
    process = start(tmp_path)
    while not list((tmp_path / "checkpoints").glob("step-*")):
        time.sleep(0.01)
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join()
    start(tmp_path).join()

    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, 61))


def test_workers_and_cadences_may_change_and_nothing_else_does(tmp_path: Path) -> None:
    pretrain(CONFIG, data=images(), out=tmp_path / "a", quiet=True)
    pretrain(
        replace(CONFIG, workers=2, save_every_steps=60),
        data=images(),
        out=tmp_path / "b",
        quiet=True,
    )

    assert end_state(tmp_path / "a") == end_state(tmp_path / "b")


def test_a_finished_run_is_refused_where_asked_and_points_to_init(tmp_path: Path) -> None:
    short = replace(CONFIG, steps=2)
    pretrain(short, data=images(), out=tmp_path, quiet=True)

    with pytest.raises(ConfigError, match="finished.*--init"):
        pretrain(short, data=images(), out=tmp_path, finished_too=False, quiet=True)


def test_minutes_are_turned_into_steps_once(tmp_path: Path) -> None:
    timed = replace(CONFIG, steps=None, minutes=0.02)
    run = pretrain(timed, data=images(), out=tmp_path, quiet=True)

    record = json.loads((tmp_path / "run.json").read_text())
    assert record["num_steps"] == run.num_steps > 1
    assert record["config"]["minutes"] == 0.02
