"""Weights of a run that is being trained."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import mae
import mae.weights.read as reading
from mae.config.run import PretrainConfig
from mae.config.serialize import to_dict
from mae.model.create import create
from mae.runs.checkpoint import save_checkpoint
from mae.train.resolve import new_state
from mae.weights.tools.inspect import inspect
from tests.model.tiny import tiny_config
from tests.runs.thread_ranks import save_halves


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_checkpoint_deleted_while_it_is_read_is_replaced_by_the_newest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    config = PretrainConfig(model=tiny_config(), device="cpu")
    state = new_state(create(config.model, seed=0), config)
    (tmp_path / "run.json").write_text(json.dumps({"config": to_dict(config), "data": {}}))
    save_checkpoint(tmp_path / "checkpoints", state, extra={}, keep=2)
    read, deletions = reading.read_tensors, [tmp_path / "checkpoints" / "step-00000000"]

    def read_and_delete(file: Path, **options: Any) -> Any:
        found = None if when == "before" else read(file, **options)
        if deletions:
            state.step = 1
            save_checkpoint(tmp_path / "checkpoints", state, extra={}, keep=2)
            shutil.rmtree(deletions.pop())
        return found or read(file, **options)

    monkeypatch.setattr(reading, "read_tensors", read_and_delete)

    loaded = mae.load(tmp_path)

    assert not deletions
    for name, tensor in state.model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)


def test_a_checkpoint_that_ranks_wrote_together_is_read(tmp_path: Path) -> None:
    config = PretrainConfig(model=tiny_config(), device="cpu")
    state = new_state(create(config.model, seed=0), config)
    (tmp_path / "run.json").write_text(json.dumps({"config": to_dict(config), "data": {}}))
    path = save_halves(tmp_path / "checkpoints", state)[0]
    assert isinstance(path, Path)

    loaded = mae.load(tmp_path)

    for name, tensor in state.model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)
    assert inspect(path).not_finite == 0

    (path / "__1_0.distcp").unlink()
    with pytest.raises(mae.WeightsError, match="__1_0.distcp"):
        mae.load(path)
