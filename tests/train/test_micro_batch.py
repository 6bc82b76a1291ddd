"""The micro-batch that fits is found without a trace, and kept."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from mae.config.run import FinetuneConfig, FitConfig, OptimConfig, PretrainConfig
from mae.data.batching.batch import Batch
from mae.errors import ConfigError
from mae.jobs.pretrain import pretrain
from mae.model.classifier import Classifier
from mae.model.create import create
from mae.runs.state import TrainState
from mae.train import micro_batch as fitting
from mae.train.measure import StepRecipe
from mae.train.micro_batch import fits_here, largest_by_formula, largest_that_fits
from mae.train.resolve import new_state
from mae.train.step import OptimiserStep, pretraining_loss
from tests.jobs.kill_storm import CONFIG, end_state
from tests.jobs.test_pretrain import stop_after_first_save
from tests.model.costed import SHAPES
from tests.model.tiny import tiny_config

CPU, MODEL, ROOM = torch.device("cpu"), tiny_config(), 5
IMAGES = np.random.default_rng(0).integers(0, 256, (20, 16, 24, 1), dtype=np.uint8)
AUTO = replace(CONFIG, steps=6, micro_batch="auto")


def crowded(model: nn.Module, batch: Batch) -> torch.Tensor:
    """Compute no more images than there is room for."""
    if len(batch.ids) > ROOM:
        raise torch.cuda.OutOfMemoryError("made up")
    return pretraining_loss(model, batch)


def stored(count: int) -> Batch:
    generator, ids = torch.Generator().manual_seed(3), torch.arange(count)
    images = torch.randint(
        0, 256, (count, 3, *MODEL.image_size), dtype=torch.uint8, generator=generator
    )
    noise = torch.rand(count, MODEL.num_patches, generator=generator)
    return Batch(images, noise, ids, ids)


def tensors(state: TrainState) -> list[torch.Tensor]:
    held = state.optimizer.state.values()
    kept = [*state.model.state_dict().values(), *(v for own in held for v in own.values())]
    return [value.clone() for value in kept]


@pytest.mark.parametrize(
    ("room", "found", "tried"),
    [(5000, 1024, 1), (300, 256, 3), (1, 1, 11), (0, 0, 11)],
)
def test_a_number_is_halved_until_it_fits(room: int, found: int | None, tried: int) -> None:
    asked = list[int]()

    def fits(count: int) -> bool:
        asked.append(count)
        return count <= room

    assert largest_that_fits(fits, start=1024) == found
    assert len(asked) == tried


@pytest.mark.parametrize("updated", [pytest.param(False, marks=pytest.mark.slow), True])
def test_what_is_tried_leaves_no_trace(*, updated: bool) -> None:
    config = PretrainConfig(model=MODEL, batch=8, device="cpu", optim=OptimConfig(lr=0.1))
    state, given, how = new_state(create(MODEL), config), stored(8), StepRecipe(crowded)
    if updated:
        OptimiserStep(loss=pretraining_loss, config=config, device=CPU)(state, given, lr=0.1)
        state.optimizer.zero_grad()
    before = tensors(state)

    tried = {n: fits_here(config, state, given, how, n) for n in (8, 4, 5, 6)}

    assert tried == {8: False, 4: True, 5: True, 6: False}
    assert all(map(torch.equal, tensors(state), before))
    assert all(p.grad is None for p in state.model.parameters())


def by_formula(config: PretrainConfig | FinetuneConfig, gib: float) -> int:
    model: nn.Module = create(config.model)
    if isinstance(config, FinetuneConfig):
        model = Classifier(create(config.model).encoder, num_classes=4).requires_grad_(True)  # noqa: FBT003
    return largest_by_formula(replace(config, device="cpu"), model, gib * 2**30)


@pytest.mark.slow
def test_as_many_fit_as_the_memory_takes_and_more_where_less_is_kept() -> None:
    small = SHAPES["vit-ti/16 at 96"]
    config = PretrainConfig(model=small, batch=4096, precision="float32")
    tuned = FinetuneConfig(model=small, batch=4096, precision="float32")

    none, some, twice = (by_formula(config, gib) for gib in (0.1, 0.5, 0.8))

    assert none == 0 < some < twice < 4096
    assert by_formula(config, 100.0) >= 4096
    assert by_formula(replace(config, checkpoint_every=1), 0.5) > 1.5 * some
    assert by_formula(replace(config, precision="bf16"), 0.5) > 1.2 * some
    assert 0 < by_formula(tuned, 1.5) < by_formula(config, 1.5)  # which sees every patch
    assert by_formula(replace(tuned, ema=0.9), 1.5) < by_formula(tuned, 1.5)


@pytest.mark.slow
def test_a_micro_batch_that_fits_is_recorded_and_kept_by_a_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(fitting, "largest_by_formula", lambda *_: 3)
    assert AUTO.batch == 8
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_after_first_save(patch)
        pretrain(AUTO, data=IMAGES, out=tmp_path / "run")
    assert "micro-batch: 3 fit, 3 passes a step" in capfd.readouterr().err

    monkeypatch.setattr(fitting, "largest_by_formula", lambda *_: 100)
    pretrain(AUTO, data=IMAGES, out=tmp_path / "run", quiet=True)

    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (record["micro_batch"], record["config"]["micro_batch"]) == (3, "auto")
    said = replace(AUTO, micro_batch=3)
    pretrain(said, data=IMAGES, out=tmp_path / "said", quiet=True)
    assert end_state(tmp_path / "run") == end_state(tmp_path / "said")


def test_where_nothing_fits_it_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting, "free_bytes", lambda device: 1e3)

    with pytest.raises(ConfigError, match="micro_batch: not one image fits .* on cpu; use"):
        pretrain(AUTO, data=IMAGES, out=tmp_path, quiet=True)


def test_a_number_of_a_micro_batch_is_a_number_and_auto_is_not_yet_one() -> None:
    assert FitConfig(micro_batch=8).fixed_micro_batch == 8
    assert FitConfig(micro_batch="auto").fixed_micro_batch is None
    with pytest.raises(ConfigError, match="micro_batch: expected at least 1, got 0"):
        FitConfig(micro_batch=0)
