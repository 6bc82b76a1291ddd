"""Going back to an older checkpoint, and round a window of batches, whatever ends it in between."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mae.cli.main import main
from mae.cli.options import without_options
from mae.errors import ConfigError, TrainingError
from mae.jobs.pretrain import pretrain
from mae.train import trainer
from mae.train.step import OptimiserStep
from tests.jobs.kill_storm import CHANGES, CONFIG, CONTEXT, end_state, images

TWELVE = replace(CONFIG, steps=12, keep=4)
BACK = {"resume_from": 2, "skip_steps": 5}


class _Died(Exception):
    """What ends the run of a test."""


def run(out: Path, **how: Any) -> None:
    pretrain(TWELVE, data=images(), out=out, quiet=True, **how)


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that died in step 7, with checkpoints of steps 2, 4 and 6."""
    out = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(_Died):
        patch.setattr(OptimiserStep, "__call__", _dies_after(6))
        run(out)
    return out


def _dies_after(last: int) -> Any:
    real = OptimiserStep.__call__

    def step(self: OptimiserStep, state: Any, batch: Any, **how: Any) -> Any:
        if state.step == last:
            raise _Died
        return real(self, state, batch, **how)

    return step


@pytest.fixture
def out(begun: Path, tmp_path: Path) -> Path:
    return shutil.copytree(begun, tmp_path / "run")


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The end of a run whose steps 3 to 7 are skipped because their losses are not finite."""
    real = trainer.compiled_loss
    out = tmp_path_factory.mktemp("nan")

    def compiled(run: Any, state: Any, plan: Any, recipe: Any) -> Any:
        skipped = {int(i) for step in range(2, 7) for i in plan.batch_ids(step)[1]}
        loss, calls = real(run, state, plan, recipe), iter(range(99))

        def sometimes(model: Any, part: Any) -> Any:
            bad = next(calls) in range(2, 7)
            assert not bad or set(part.ids.tolist()) <= skipped
            return loss(model, part) * (torch.nan if bad else 1)

        return sometimes

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "compiled_loss", compiled)
        patch.setattr("mae.train.fit.MOST_BAD_IN_A_ROW", 99)
        run(out)
    return end_state(out)


def steps(out: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (out / "log.jsonl").read_text().splitlines()]


def test_a_window_ends_in_the_bits_of_a_run_that_skipped_those_steps(
    out: Path, expected: str
) -> None:
    run(out, **BACK)

    assert end_state(out) == expected
    assert steps(out) == [1, 2, 7, 8, 9, 10, 11, 12]
    (window,) = json.loads((out / "run.json").read_text())["windows"]
    assert (window["from"], window["to"]) == (2, 7)
    assert '{"step": 7, "window": {"from": 2, "to": 7, "time": ' in (out / "log.jsonl").read_text()
    assert not list(out.glob("checkpoints/*.old"))


def test_the_same_command_again_does_not_skip_again(
    out: Path, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, pytest.raises(_Died):
        patch.setattr(OptimiserStep, "__call__", _dies_after(9))
        run(out, **BACK)
    with monkeypatch.context() as patch, pytest.raises(_Died):
        patch.setattr(OptimiserStep, "__call__", _dies_after(11))
        run(out, **BACK)
    run(out)

    assert end_state(out) == expected
    assert len(json.loads((out / "run.json").read_text())["windows"]) == 1


def test_newer_checkpoints_stay_until_the_next_save(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, pytest.raises(_Died):
        patch.setattr(OptimiserStep, "__call__", _dies_after(7))
        run(out, **BACK)

    names = sorted(path.name for path in (out / "checkpoints").iterdir())
    assert names == ["step-00000002", "step-00000004.old", "step-00000006.old"]


@pytest.mark.slow
def test_going_back_without_a_window_ends_as_an_undisturbed_run(out: Path, tmp_path: Path) -> None:
    run(tmp_path / "whole")
    run(out, resume_from=4)

    assert end_state(out) == end_state(tmp_path / "whole")
    assert steps(out) == list(range(1, 13))


def killed_run(out: str, at: int) -> None:
    """Go round the window, and die by SIGKILL before the change number `at` to the run."""
    left = [at]

    def look(event: str, values: tuple[object, ...]) -> None:
        writes = event == "open" and isinstance(values[1], str) and set(values[1]) & set("aw+")
        if (event in CHANGES or writes) and str(values[0]).startswith(out):
            left[0] -= 1
            if left[0] < 0:
                os.kill(os.getpid(), signal.SIGKILL)

    torch.set_num_threads(1)
    sys.addaudithook(look)
    run(Path(out), **BACK)


@pytest.mark.slow
def test_a_kill_at_any_change_is_completed_by_the_same_command(
    begun: Path, tmp_path: Path, expected: str
) -> None:
    for at in range(1, 14, 4):
        out = shutil.copytree(begun, tmp_path / str(at))
        process = CONTEXT.Process(target=killed_run, args=(str(out), at))
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        run(out, **BACK)
        assert end_state(out) == expected, f"killed before change {at}"


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"resume_from": 3}, "no checkpoint of step 3; there are: 2, 4, 6"),
        ({"resume_from": 2, "skip_steps": 10}, "at most 9 after step 2 of 12, got 10"),
        ({"resume_from": 2, "skip_steps": -1}, "skip_steps: expected at least 0, got -1"),
        ({"skip_steps": 2}, "skip_steps: got 2 without resume_from"),
    ],
)
def test_what_cannot_be_is_one_line_and_changes_nothing(
    out: Path, asked: dict[str, int], message: str
) -> None:
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with pytest.raises(ConfigError, match=message):
        run(out, **asked)

    lock = out / "lock"
    after = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert {**before, lock: b""} == {**after, lock: b""}


def test_a_damaged_checkpoint_is_not_gone_back_to(out: Path) -> None:
    (out / "checkpoints" / "step-00000004" / "state.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"state.json has 2 bytes.*resume from another step"):
        run(out, resume_from=4)

    assert (out / "checkpoints" / "step-00000006").is_dir()


def test_a_folder_without_a_run_is_refused_and_not_made(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"resume_from: got 2, but .* holds no run"):
        run(tmp_path / "new", resume_from=2)

    assert not (tmp_path / "new").exists()


def test_five_bad_steps_name_the_way_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = trainer.compiled_loss

    def compiled(*given: Any) -> Any:
        loss, calls = real(*given), iter(range(99))
        return lambda model, part: loss(model, part) * (torch.nan if next(calls) > 2 else 1)

    config = replace(TWELVE, save_every_steps=3)
    with monkeypatch.context() as patch, pytest.raises(TrainingError) as stopped:
        patch.setattr(trainer, "compiled_loss", compiled)
        pretrain(config, data=images(), out=tmp_path, quiet=True)

    assert str(stopped.value).endswith(
        "step-00000006; to skip those batches: --resume-from 6 --skip-steps 2"
    )
    pretrain(config, data=images(), out=tmp_path, quiet=True, resume_from=6, skip_steps=2)
    assert steps(tmp_path)[-5:] == [8, 9, 10, 11, 12]


def test_the_command_that_resumes_is_without_the_way_round() -> None:
    words = "pretrain --resume-from 3 skip_steps = 4 --data x --skip-steps=2 --out resume-from"

    kept = without_options(words.split(), ("resume-from", "skip-steps"))

    assert kept == ["pretrain", "--data", "x", "--out", "resume-from"]


def test_the_options_reach_the_run(
    out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["pretrain", "--data", "fashion-mnist", "--out", str(tmp_path / "new")]

    assert main([*command, "--resume-from", "2", "--skip-steps", "1"]) == 2
    assert "resume_from: got 2" in capsys.readouterr().err
    assert main(["finetune", *command[1:], "--resume-from", "2", "--seeds", "2"]) == 2
    assert "goes with one run" in capsys.readouterr().err
