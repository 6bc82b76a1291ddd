"""Mutable training state: model, optimizer, step and loss scaler; and its values at one step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mae.errors import TrainingError
from mae.parallel.shards import Shard, is_sharded, shard_of


@dataclass
class TrainState:
    """The model, its optimizer and the progress of the run."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    step: int = 0
    """Optimizer steps taken, including skipped ones."""
    bad_in_a_row: int = 0
    """Most recent consecutive steps skipped because the loss or gradient was not finite."""
    scaler: torch.amp.GradScaler | None = None
    """Loss scaler for fp16."""
    skeleton: nn.Module | None = None
    """The model without its values, where ranks hold parts of it; None: this one holds all."""

    @property
    def is_sharded(self) -> bool:
        """Whether each rank holds a part of the parameters."""
        return is_sharded(self.model.parameters())


class Snapshot(NamedTuple):
    """Values of a training state at one step, as a checkpoint holds them."""

    step: int
    bad_in_a_row: int
    scaler: dict[str, Any] | None
    model: dict[str, Shard]
    """Parameters and buffers by name."""
    moments: dict[str, Shard]
    """Optimizer state, as `exp_avg.NAME`."""
    is_sharded: bool

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors on this rank."""
        return sum(s.local.nbytes for s in (*self.model.values(), *self.moments.values()))

    def non_finite(self) -> list[str]:
        """Return the names of parameters and buffers with values that are not finite."""
        tensors = ((name, shard.local) for name, shard in self.model.items())
        return [n for n, t in tensors if t.is_floating_point() and not t.isfinite().all()]

    def require_finite(self, bad: list[str]) -> None:
        """Raise a TrainingError if any of the names of `non_finite` are given."""
        if bad:
            raise TrainingError(
                f"step {self.step}: not saved: {len(bad)} tensors are not finite, {bad[:5]}; begin "
                "a new run with a lower --lr"
            )

    def copied(self) -> Snapshot:
        """Return a copy in host memory, which later steps do not change."""
        model, moments = (
            {n: s._replace(local=s.local.to("cpu", copy=True)) for n, s in shards.items()}
            for shards in (self.model, self.moments)
        )
        return self._replace(model=model, moments=moments)


def snapshot_of(state: TrainState) -> Snapshot:
    """Return the present values of a state; the tensors are views of it."""
    # First: it makes a sharded model, of which a block may be gathered, hold its shards.
    model = state.model.state_dict()
    return Snapshot(
        step=state.step,
        bad_in_a_row=state.bad_in_a_row,
        scaler=None if state.scaler is None else state.scaler.state_dict(),
        model={name: shard_of(tensor) for name, tensor in model.items()},
        moments={name: shard_of(tensor) for name, tensor in _moments(state).items()},
        is_sharded=state.is_sharded,
    )


def _moments(state: TrainState) -> dict[str, Tensor]:
    """Return the optimizer state tensors, named by kind and parameter."""
    return {
        f"{kind}.{name}": tensor
        for name, parameter in state.model.named_parameters()
        for kind, tensor in state.optimizer.state.get(parameter, {}).items()
    }
