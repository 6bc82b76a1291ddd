"""The end of a run: weights first, then the record, then the checkpoints; killed at any moment."""

from __future__ import annotations

import json
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import mae
from mae.config.run import PretrainConfig
from mae.errors import ConfigError, TrainingError
from mae.jobs.finetune import finetune
from mae.jobs.pretrain import pretrain
from mae.train import saver as running
from tests.jobs.kill_storm import CONFIG, CONTEXT, SHORT, images, watch_the_end
from tests.jobs.test_finetune import PLAIN, folder

__all__ = ["folder"]

LAST = "step-00000004"


def run(out: Path, config: PretrainConfig = SHORT, **options: object) -> mae.Run:
    return pretrain(config, data=images(), out=out, quiet=True, **options)  # type: ignore[arg-type]


def same_weights(found: torch.nn.Module, expected: torch.nn.Module) -> bool:
    there = found.state_dict()
    return all(torch.equal(there[name], t) for name, t in expected.state_dict().items())


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_finished_run_has_no_checkpoints_and_is_used_as_before(tmp_path: Path) -> None:
    done = run(tmp_path / "run")

    assert not (tmp_path / "run" / "checkpoints").exists()
    assert same_weights(mae.load(tmp_path / "run"), done.model)
    assert mae.embed(tmp_path / "run", images()).shape == (50, 24)
    on = run(tmp_path / "more", replace(SHORT, steps=1), init=tmp_path / "run")
    assert on.model.config == done.model.config


def test_the_checkpoints_of_a_finished_run_are_kept_if_asked(tmp_path: Path) -> None:
    run(tmp_path, replace(SHORT, keep_checkpoints=True))

    assert names(tmp_path / "checkpoints") == ["step-00000002", LAST]


def test_a_finished_fine_tuning_has_no_checkpoints(
    folder: Path, weights: Path, tmp_path: Path
) -> None:
    ask = {"data": folder, "weights": weights, "out": tmp_path / "run", "quiet": True}
    done = finetune(replace(PLAIN, steps=2), **ask)  # type: ignore[arg-type]

    again = finetune(replace(PLAIN, steps=2), **ask)  # type: ignore[arg-type]

    assert not (tmp_path / "run" / "checkpoints").exists()
    assert again.resumed and again.top1 == done.top1
    assert same_weights(again.model, done.model)


def watch(out: Path, *, die_at: int | None = None) -> int | None:
    """Train in a process of its own; give how it ended."""
    copies = out.with_name("copies")
    process = CONTEXT.Process(target=watch_the_end, args=(str(out), str(copies), die_at))
    process.start()
    process.join()
    return process.exitcode


def goes_on(out: Path, whole: Path) -> bool:
    """Check that what a kill left holds the last weights, and goes on to the same end.

    Returns:
        Whether the run had been recorded as finished.
    """
    expected = mae.load(whole)
    assert same_weights(mae.load(out), expected), out
    finished: bool = json.loads((out / "run.json").read_text())["finished"]
    again = run(out)
    assert again.resumed and same_weights(again.model, expected), out
    assert json.loads((out / "run.json").read_text())["finished"]
    assert [names(out), names(out / "weights")] == [names(whole), names(whole / "weights")], out
    return finished


@pytest.mark.slow
def test_a_kill_before_any_change_to_the_disk_after_the_last_step_loses_nothing(
    tmp_path: Path,
) -> None:
    whole, copies = tmp_path / "whole", tmp_path / "copies"
    assert watch(whole) == 0

    found = [goes_on(copies / str(moment), whole) for moment in range(len(names(copies)))]

    # Weights, report and record; then what two checkpoints consist of.
    assert len(found) > 25
    assert found == sorted(found) and set(found) == {False, True}
    recorded = found.index(True)
    for moment in (1, recorded - 1, recorded + 3):
        out = tmp_path / f"killed-{moment}"
        assert watch(out, die_at=moment) == -signal.SIGKILL
        assert goes_on(out, whole) is (moment >= recorded)


@pytest.mark.slow
def test_weights_that_read_back_otherwise_leave_the_run_unfinished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mae.jobs import pretrain as job

    real = job.save

    def save_wrongly(model: mae.MaskedAutoencoder, folder: Path, **more: object) -> Path:
        wrong = mae.create(model.config, seed=3)
        return real(wrong, folder, **more)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(job, "save", save_wrongly)
        with pytest.raises(TrainingError, match="tensors are not what was written"):
            run(tmp_path)
    assert names(tmp_path / "checkpoints") == ["step-00000002", LAST]

    last = mae.load(tmp_path)  # of the checkpoint
    assert same_weights(run(tmp_path).model, last)
    assert same_weights(mae.load(tmp_path), last)


def test_a_finished_run_is_given_as_it_is(tmp_path: Path) -> None:
    first = run(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}

    again = run(tmp_path)

    assert again.resumed and same_weights(again.model, first.model)
    assert (again.path, again.config, again.num_steps) == (tmp_path, first.config, 4)
    assert again.loss == first.loss > 0
    del before[tmp_path / "lock"]
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())


def test_a_finished_run_of_something_else_is_refused(tmp_path: Path) -> None:
    run(tmp_path / "run")

    with pytest.raises(ConfigError, match="holds a run of another configuration: steps: run has 4"):
        run(tmp_path / "run", replace(SHORT, steps=5))
    with pytest.raises(ConfigError, match="its data has changed"):
        pretrain(SHORT, data=images()[1:], out=tmp_path / "run", quiet=True)
    with pytest.raises(ConfigError, match=r"from other weights: init: run has None, asked"):
        run(tmp_path / "run", init=tmp_path / "run")


def edit_record(out: Path, *drop: str, **changes: object) -> None:
    record = json.loads((out / "run.json").read_text())
    config = {k: v for k, v in record["config"].items() if k not in drop}
    known = {k: v for k, v in changes.items() if k in record}
    record |= known | {"config": config | {k: v for k, v in changes.items() if k not in record}}
    (out / "run.json").write_text(json.dumps(record))


def test_an_unfinished_run_of_before_keeps_its_rows_and_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = replace(CONFIG, steps=9, log_every_steps=None, keep_checkpoints=False)
    real = running.save_checkpoint

    def save_and_die(*args: object, **more: object) -> Path:
        raise KeyboardInterrupt(real(*args, **more))  # type: ignore[arg-type]

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(running, "save_checkpoint", save_and_die)
        run(tmp_path, usual)
    edit_record(tmp_path, "keep_checkpoints", keep=3, log_every_steps=4)  # 50 in its time
    kept: list[int] = []

    def save(*args: object, **more: int) -> Path:
        kept.append(more["keep"])
        return real(*args, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(running, "save_checkpoint", save)
    run(tmp_path, usual)

    rows = [json.loads(line)["step"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert rows == [1, 2, 4, 8, 9]  # 1 and 2 were written before the end of the first start
    assert set(kept) == {3}
    record = json.loads((tmp_path / "run.json").read_text())["config"]
    assert (record["keep"], record["log_every_steps"]) == (3, 4)


def test_a_finished_run_of_before_keeps_its_checkpoints(tmp_path: Path) -> None:
    run(tmp_path, replace(SHORT, keep_checkpoints=True))
    edit_record(tmp_path, "keep_checkpoints")

    run(tmp_path)

    assert names(tmp_path / "checkpoints") == ["step-00000002", LAST]


@pytest.mark.slow
def test_a_short_run_logs_every_step(tmp_path: Path) -> None:
    run(tmp_path, replace(SHORT, steps=44, log_every_steps=None))

    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, 45))
    page = (tmp_path / "report.html").read_text()
    curve = max((part.partition('"')[0] for part in page.split(' d="M')[1:]), key=len)
    assert curve.count("L") == 44  # its 44 points, and the end once more
