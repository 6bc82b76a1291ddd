"""Several seeds of fine-tuning: a run for each, and what they come to."""

from __future__ import annotations

import json
import statistics
from dataclasses import replace
from pathlib import Path

import pytest

from mae.cli.main import main
from mae.errors import ConfigError
from mae.jobs.finetune import finetune, finetune_seeds
from mae.model.create import create
from mae.weights.formats.native import save
from tests.jobs.conftest import TINY, write_classes
from tests.jobs.test_finetune import PLAIN

SHORT = replace(PLAIN, steps=2, seed=5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give 6 images each of two classes."""
    return write_classes(tmp_path_factory.mktemp("labelled") / "d", "a", "b", count=6)


def test_each_run_is_that_of_its_seed_alone(folder: Path, weights: Path, tmp_path: Path) -> None:
    few = {"data": folder, "weights": weights, "labels": "2/class", "quiet": True}

    found = finetune_seeds(SHORT, seeds=3, out=tmp_path / "runs", **few)  # type: ignore[arg-type]

    six = finetune(replace(SHORT, seed=6), out=tmp_path / "six", **few)  # type: ignore[arg-type]
    assert [run.path.name for run in found.runs] == ["seed-5", "seed-6", "seed-7"]
    assert (found.runs[1].loss, found.runs[1].top1) == (six.loss, six.top1)
    chosen = [(run.path / "labels.csv").read_text() for run in found.runs]
    assert chosen[1] == (tmp_path / "six" / "labels.csv").read_text() != chosen[0]


def test_mean_and_deviation_are_those_of_the_runs(
    folder: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["finetune", "--data", folder, "--weights", weights, "--out", tmp_path / "runs"]
    words += "--steps 2 --batch 4 --seeds 3 --labels 2/class --quiet".split()

    assert main([*map(str, words), "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert main([*map(str, words)]) == 0
    table = capsys.readouterr().out.splitlines()

    losses = [run["loss"] for run in values["runs"]]
    assert values["seeds"] == [0, 1, 2] and len(set(losses)) == 3
    assert values["loss"] == pytest.approx(statistics.mean(losses))
    assert values["loss_spread"] == pytest.approx(statistics.stdev(losses))
    assert "±" in table[0] and table[1].split()[:3] == ["loss", f"{values['loss']:.4g}", "±"]
    rows = {line.split()[0]: line.split()[1:] for line in table[2:-3]}
    assert rows["train"] == ["4"] and rows["test"] == ["2"] and rows["labels"] == ["2/class"]
    assert rows["seeds"] == ["0", "1", "2"] and rows["path"] == [str(tmp_path / "runs")]
    assert [line.split()[:2] for line in table[-3:]] == [["seed", str(i)] for i in range(3)]


def test_finished_runs_are_kept_and_more_seeds_can_be_added(
    folder: Path, weights: Path, tmp_path: Path
) -> None:
    ask = {"data": folder, "weights": weights, "out": tmp_path / "runs", "quiet": True}
    two = finetune_seeds(SHORT, seeds=2, **ask)  # type: ignore[arg-type]
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("*.safetensors")}

    three = finetune_seeds(SHORT, seeds=3, **ask)  # type: ignore[arg-type]

    assert [r.loss for r in three.runs[:2]] == [r.loss for r in two.runs]
    assert {path: path.stat().st_mtime_ns for path in made} == made


def test_finished_runs_of_something_else_are_refused(
    folder: Path, weights: Path, tmp_path: Path
) -> None:
    ask = {"data": folder, "seeds": 1, "out": tmp_path / "runs", "quiet": True}
    finetune_seeds(SHORT, weights=weights, **ask)  # type: ignore[arg-type]
    save(create(TINY, seed=1), tmp_path / "others")

    with pytest.raises(ConfigError, match="of another configuration: steps: run has 2, asked 3"):
        finetune_seeds(replace(SHORT, steps=3), weights=weights, **ask)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="finished run from other weights: weights: run has"):
        finetune_seeds(SHORT, weights=tmp_path / "others", **ask)  # type: ignore[arg-type]


def test_what_cannot_be_is_refused_before_any_run(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="seeds: expected at least 1, got 0"):
        finetune_seeds(SHORT, seeds=0, data="d", out=tmp_path / "runs")
    (tmp_path / "run.json").touch()

    with pytest.raises(ConfigError, match="is a run itself, expected a folder for a run of each"):
        finetune_seeds(SHORT, seeds=2, data="d", out=tmp_path)


def test_a_finished_run_is_given_as_it_is_unless_it_is_to_be_refused(
    folder: Path, weights: Path, tmp_path: Path
) -> None:
    ask = {"data": folder, "weights": weights, "out": tmp_path / "run", "quiet": True}
    first = finetune(SHORT, **ask)  # type: ignore[arg-type]

    with pytest.raises(ConfigError, match="this run is finished"):
        finetune(SHORT, finished_too=False, **ask)  # type: ignore[arg-type]

    again = finetune(SHORT, **ask)  # type: ignore[arg-type]
    assert again._replace(model=first.model, resumed=False) == first
