"""What pre-training and fine-tuning share while they train."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mae.config.run import FinetuneConfig, OptimConfig
from mae.config.serialize import to_dict
from mae.errors import ConfigError
from mae.runs.directory import open_run
from mae.train.session import _defaults_of
from mae.train.trainer import tf32_beside


@pytest.mark.parametrize(
    ("half", "device", "products"),
    [
        ("bf16", "cuda", "high"),
        ("fp16", "cuda", "high"),
        (None, "cuda", "highest"),
        ("bf16", "cpu", "highest"),
    ],
)
def test_tf32_is_for_what_is_left_beside_half_precision_on_a_gpu_alone(
    half: str | None, device: str, products: str
) -> None:
    with pytest.raises(KeyError), tf32_beside(half, torch.device(device)):
        assert torch.get_float32_matmul_precision() == products
        raise KeyError

    assert torch.get_float32_matmul_precision() == "highest"


def test_a_run_from_before_a_field_goes_on_as_it_began(tmp_path: Path) -> None:
    """`min_lr_scaled` came later; layer decay scaled the last rate of every run until then."""
    config = FinetuneConfig(optim=OptimConfig(min_lr=1e-6))
    record = {
        "config": to_dict(config),
        "data": {"fingerprint": "f", "count": 3},
        "finished": False,
    }
    older = {**record, "config": to_dict(config)}
    del older["config"]["optim"]["min_lr_scaled"]
    open_run(tmp_path, record=older)

    fixed = replace(config, optim=replace(config.optim, min_lr_scaled=False))
    with pytest.raises(ConfigError, match="optim.min_lr_scaled: run has True, asked False"):
        open_run(tmp_path, record=record | {"config": to_dict(fixed)}, defaults=_defaults_of(fixed))
    assert open_run(tmp_path, record=record, defaults=_defaults_of(config)).resumed
