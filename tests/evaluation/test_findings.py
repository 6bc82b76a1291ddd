"""Each finding is named by the rows that show it, and by no others."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mae.config.run import OptimConfig
from mae.evaluation.findings import findings
from mae.jobs.pretrain import pretrain
from mae.runs.log import read_rows
from tests.images import photo
from tests.jobs.kill_storm import CONFIG

SOUND = {"rank": 9.0, "dead": 0.0, "cosine": 0.6, "duplicates": 0.0}


def row(step: int, loss: float, held_out_loss: float, gain: float, **fields: Any) -> dict[str, Any]:
    given = {"step": step, "loss": loss, "held_out_loss": held_out_loss, "gain": gain,
             "gain_over_mean": gain + 3}  # fmt: skip
    return SOUND | given | fields


def rows() -> list[dict[str, Any]]:
    """Give the checks of a sound run of 400 steps."""
    return [row(1, 2.0, 2.1, -6.0), row(100, 0.8, 0.9, -2.0), row(200, 0.6, 0.7, -1.0),
            row(300, 0.5, 0.6, 0.5), row(400, 0.45, 0.58, 0.8)]  # fmt: skip


def names(checks: list[dict[str, Any]]) -> list[str]:
    return [finding.name for finding in findings(checks, num_steps=400)]


def test_a_sound_run_has_no_finding_at_any_step() -> None:
    assert [names(rows()[:end]) for end in range(1, 6)] == [[]] * 5


@pytest.mark.parametrize(
    ("name", "place", "change"),
    [
        ("mostly duplicates", 0, {"duplicates": 0.7}),
        ("pixels off scale", 0, {"input_std": 0.04}),
        ("pixels off scale", 0, {"input_std": 60.0}),
        ("diverging", 2, {"loss": 1.2}),
        ("diverging", 1, {"loss": None}),
        ("memorising", 4, {"held_out_loss": 0.7}),
        ("not learning", 2, {"gain_over_mean": 0.1}),
        ("too short", 4, {"gain": -2.5}),
    ],
)
def test_a_finding_is_named_once_its_figures_are_there(
    name: str, place: int, change: dict[str, Any]
) -> None:
    checks = rows()[: place + 1]
    checks[-1] |= change

    assert names(checks) == [name]
    text = findings(checks, num_steps=400)[0].text
    assert text.startswith(f"{name}: ") and "\n" not in text


def test_images_of_little_or_much_contrast_are_on_scale() -> None:
    for std in (0.2, 1.0, 4.0):
        assert names([check | {"input_std": std} for check in rows()]) == []


def test_a_run_that_is_no_better_than_at_its_beginning_does_not_learn() -> None:
    checks = rows()
    checks[-1] |= {"gain_over_mean": 1.2}

    assert [finding.name for finding in findings(checks, num_steps=500)] == ["not learning"]


@pytest.mark.parametrize("change", [{"cosine": 0.99, "rank": 1.1}, {"dead": 0.95, "rank": 1.5}])
def test_features_that_vary_no_more_are_collapsed_if_they_stay_so(change: dict[str, Any]) -> None:
    checks = rows()
    checks[2] |= change

    assert names(checks[:4]) == []
    checks[3] |= change
    assert names(checks[:4]) == ["collapsed"]


def test_images_that_hardly_differ_are_no_collapse() -> None:
    alike = [check | {"cosine": 0.997, "rank": 1.9} for check in rows()]

    assert names(alike) == []


def test_pretrained_weights_need_not_improve_after_a_hundred_steps() -> None:
    checks = [check | {"gain_over_mean": 5.0} for check in rows()]

    assert names(checks) == []


def test_without_held_out_images_nothing_is_said_of_memorising() -> None:
    checks = [{k: v for k, v in check.items() if "held" not in k} for check in rows()]

    assert names(checks) == []


TINY = replace(CONFIG, steps=400, batch=8, held_out=0.1, save_every_steps=400,
               optim=OptimConfig(lr=0.05, warmup_epochs=40))  # fmt: skip


def crops() -> np.ndarray:
    return np.stack([photo(16, 24, seed=seed) for seed in range(200)])


@pytest.mark.slow
def test_a_sound_tiny_run_raises_no_alarm(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    pretrain(replace(TINY, steps=200), data=crops(), out=tmp_path)

    assert all(not check["findings"] for check in read_rows(tmp_path / "health.jsonl"))
    assert "health:" not in capfd.readouterr().err


@pytest.mark.slow
def test_a_collapse_is_named_once_in_a_real_run(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    decayed = replace(TINY, optim=replace(TINY.optim, weight_decay=200.0))

    pretrain(decayed, data=crops(), out=tmp_path)

    assert "collapsed" in read_rows(tmp_path / "health.jsonl")[-1]["findings"]
    assert capfd.readouterr().err.count("health: collapsed: ") == 1
    assert "collapsed: the features of all images" in (tmp_path / "report.html").read_text()
