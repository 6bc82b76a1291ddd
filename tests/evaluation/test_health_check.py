"""The checks of a run: the same rows after a resume, held-out images, little time, no draw."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mae.config.model import ModelConfig
from mae.config.run import PretrainConfig
from mae.data.batching.batch import Batch, training_batch
from mae.data.sources.open import open_source
from mae.evaluation import health_check
from mae.evaluation.health_check import HealthCheck, sample_size
from mae.jobs.pretrain import pretrain
from mae.model.autoencoder import MaskedAutoencoder
from mae.model.create import create
from mae.recipes.catalogue import DEMO, FOLDER, RECIPES
from mae.runs.log import read_rows
from mae.train.resolve import batch_plan, held_out_ids, resolve
from mae.train.step import OptimiserStep
from tests.images import mixed_folder
from tests.jobs.kill_storm import CONFIG, end_state, images

HELD = replace(CONFIG, steps=4, held_out=0.1)


def many(count: int = 120) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (count, 16, 24, 3), dtype=np.uint8)


def test_held_out_images_are_in_no_batch_and_all_others_are() -> None:
    config, source = replace(HELD, batch=9), open_source(many())
    plan = batch_plan(config, source, resolve(config, source).kind)

    assert plan.batches_per_epoch == 108 // 9
    shown = np.concatenate([plan.batch_ids(step)[1] for step in range(12)])
    held = held_out_ids(config, 120)
    assert len(held) == 12
    assert sorted([*shown.tolist(), *held.tolist()]) == list(range(120))
    assert not np.array_equal(held, held_out_ids(replace(config, seed=1), 120))


def test_a_broken_image_is_not_replaced_by_a_held_out_one(tmp_path: Path) -> None:
    broken = {*mixed_folder(tmp_path, count=110, broken=30)}
    config, source = replace(HELD, held_out=0.5, batch=55), open_source(tmp_path)
    plan = batch_plan(config, source, resolve(config, source).kind)
    names: set[str] = set()

    batch = training_batch(plan, 0, on_read=lambda index: names.add(source.name(index)))

    assert batch.bad and len(batch.images) == 55
    assert not names & {source.name(index) for index in plan.held_out}
    assert broken & names


@pytest.mark.parametrize(("count", "held"), [(99, 0), (100, 5), (400, 20), (1280, 64), (10**9, 64)])
def test_few_images_are_all_trained_on_and_of_many_64_are_not(count: int, held: int) -> None:
    assert count - FOLDER.trained_images(count) == held
    assert count == DEMO.trained_images(count)


def test_recipes_of_others_hold_nothing_out() -> None:
    held = {r.name: r.config.held_out for r in RECIPES if isinstance(r.config, PretrainConfig)}

    assert {name for name, fraction in held.items() if fraction} == {"folder", "continue"}


def test_a_check_draws_nothing_and_changes_no_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = replace(CONFIG, steps=6)
    pretrain(short, data=images(), out=tmp_path / "with", quiet=True)
    monkeypatch.setattr(HealthCheck, "__call__", lambda *_: None)
    pretrain(short, data=images(), out=tmp_path / "without", quiet=True)

    assert len(read_rows(tmp_path / "with" / "health.jsonl")) == 2
    assert end_state(tmp_path / "with") == end_state(tmp_path / "without")


@pytest.mark.slow
def test_a_resumed_run_writes_the_same_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health_check, "EVERY", 1)
    monkeypatch.setattr(health_check, "MOST_TIME", 10)
    whole = pretrain(HELD, data=many(), out=tmp_path / "whole", quiet=True)
    real = OptimiserStep.__call__

    def stop_at_the_end(self: OptimiserStep, state: Any, batch: Batch, **how: Any) -> Any:
        if state.step == 3:
            raise KeyboardInterrupt
        return real(self, state, batch, **how)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(OptimiserStep, "__call__", stop_at_the_end)
        pretrain(HELD, data=many(), out=tmp_path / "run", quiet=True)
    rows = (tmp_path / "run" / "health.jsonl").read_text()
    pretrain(HELD, data=many(), out=tmp_path / "run", quiet=True)

    ends = [(tmp_path / name / "health.jsonl").read_text() for name in ("whole", "run")]
    assert rows.count("\n") == 3  # one of them after the last checkpoint
    assert ends[0] == ends[1]
    assert whole.config.held_out == 0.1
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["held_out"] == [f"image {index}" for index in held_out_ids(HELD, 120)]


def test_a_row_holds_every_figure_and_names_images(tmp_path: Path) -> None:
    pretrain(HELD, data=many(), out=tmp_path, quiet=True)

    first, last = read_rows(tmp_path / "health.jsonl")
    assert (first["step"], last["step"]) == (1, 4)
    assert first["images"] + first["held_out"] == sample_size(HELD, batch=8)[0]
    assert 0.5 < first["input_std"] == last["input_std"] < 2
    assert 1 <= last["rank"] <= last["images"] + last["held_out"]
    assert last["worst"][0][1] == max(loss for _, loss in last["worst"] + last["best"])
    assert last["best"][0][1] == min(loss for _, loss in last["worst"] + last["best"])
    assert all(name.startswith("image ") for name, _ in last["worst"])
    assert "Health" in (tmp_path / "report.html").read_text()
    assert (tmp_path / "images" / "extremes.png").exists()


def test_a_wrong_std_of_the_normalisation_is_named_at_the_first_step(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(config: ModelConfig, **fields: Any) -> MaskedAutoencoder:
        std = tuple(100 * value for value in config.pixels.std)
        return create(replace(config, pixels=replace(config.pixels, std=std)), **fields)

    monkeypatch.setattr("mae.jobs.pretrain.create", wrong)

    pretrain(HELD, data=many(), out=tmp_path)

    lines = [line for line in capfd.readouterr().err.splitlines() if "health:" in line]
    assert "pixels off scale: the pixels have a std of 0.0" in lines[0]
    assert sum("off scale" in line for line in lines) == 1
    assert [r["findings"][:1] for r in read_rows(tmp_path / "health.jsonl")] == [
        ["pixels off scale"]
    ] * 2


@pytest.mark.slow
def test_an_unreadable_image_of_the_sample_is_skipped_and_named_once(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    broken = mixed_folder(tmp_path / "in", count=110, broken=30)
    config = replace(HELD, steps=8, held_out=0.5, batch=7, max_bad=0.5)

    pretrain(config, data=tmp_path / "in", out=tmp_path / "run")

    lines = (tmp_path / "run" / "bad-files.tsv").read_text().splitlines()
    named = [line.split("\t")[0] for line in lines]
    row = read_rows(tmp_path / "run" / "health.jsonl")[-1]
    said = capfd.readouterr().err
    assert row["images"] + row["held_out"] < 16
    assert "held out: 55 of 110 images" in said
    assert {*named} <= {*broken} and len({*named}) == len(named)
    assert all(said.count(f"unreadable: {name}") == 1 for name in named)


def test_small_batches_are_checked_less_often_instead_of_on_fewer_images() -> None:
    sizes = {batch: sample_size(replace(DEMO, micro_batch=None), batch=batch)
             for batch in (2, 8, 64, 4096)}  # fmt: skip

    assert sizes[4096] == (128, 100)
    assert 16 < sizes[64][0] < 128 and sizes[64][1] == 100
    assert sizes[2][0] == 16 and sizes[2][1] > sizes[8][1] >= 100


@pytest.mark.slow
def test_the_checks_of_a_run_take_at_most_a_fiftieth_of_its_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    took: dict[str, list[float]] = {"check": [], "step": []}

    def timed(name: str, real: Any) -> Any:
        def call(*values: Any, **fields: Any) -> Any:
            began = time.process_time()
            done = real(*values, **fields)
            took[name].append(time.process_time() - began)
            return done

        return call

    monkeypatch.setattr(HealthCheck, "__call__", timed("check", HealthCheck.__call__))
    monkeypatch.setattr(OptimiserStep, "__call__", timed("step", OptimiserStep.__call__))
    monkeypatch.setattr(health_check, "EVERY", 10)
    monkeypatch.setattr(health_check, "MOST_TIME", 0.2)
    config = replace(DEMO, steps=41, batch=32, micro_batch=None, device="cpu", precision="float32")
    pretrain(config, data="fashion-mnist", out=tmp_path, quiet=True)

    check, step = (float(np.median(took[name][1:])) for name in ("check", "step"))
    assert len(took["check"]) == 6
    assert check < 0.02 * 100 * step
