"""Gradients of a global batch whose images are divided among ranks: DistributedDataParallel.

Each rank runs its own micro-batches one after the other; the last one's backward pass adds up the
gradients of all ranks.
"""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mae.errors import ConfigError
from mae.parallel.exchange import GradientExchange


class _Loss(nn.Module):
    """A loss function with its model as a submodule, for DistributedDataParallel to wrap."""

    def __init__(self, model: nn.Module, loss: Callable[..., Tensor]) -> None:
        super().__init__()
        self.model = model
        self.loss = loss

    def forward(self, batch: object) -> Tensor:
        return self.loss(self.model, batch)


def share_batch_norms(model: nn.Module) -> None:
    """Let batch norms take the statistics of all ranks, in place: on GPUs, which alone can.

    Parameters, buffers and names stay.

    Raises:
        ConfigError: for batch norms elsewhere, which would differ from those of a single rank.
    """
    parts = model.modules()
    if not any(isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d) for part in parts):
        return
    if (device := next(model.parameters()).device.type) != "cuda":
        raise ConfigError(
            f"ranks: got several on {device} with head.norm batch, whose statistics of all ranks "
            "need GPUs; use --head.norm group, or a single rank"
        )
    nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]


class ReplicatedExchange(GradientExchange):
    """The exchange of ranks that each hold the whole model.

    Args:
        model: the same on all ranks; rank 0's parameters are sent to the others. On GPUs its batch
            norms take the statistics of all ranks from then on.
        loss: of (model, batch); compiled or not.
        how: as for `GradientExchange`.
    """

    def __init__(self, model: nn.Module, loss: Callable[..., Tensor], **how: Any) -> None:
        super().__init__(**how)
        share_batch_norms(model)
        with self._ranks.failures_of_others():
            self._module: Any = DistributedDataParallel(
                _Loss(model, loss), gradient_as_bucket_view=True
            )

    def __exit__(self, *_: object) -> None:
        # Before the process group is closed, which the reducer keeps alive.
        self._module = None
        gc.collect()

    def loss(self, model: nn.Module, batch: object) -> Tensor:
        """See `GradientExchange.loss`."""
        assert model is self._module.module.model
        loss: Tensor = self._module(batch)
        return loss

    @contextmanager
    def micro_batch(self, *, last: bool) -> Iterator[None]:
        """See `GradientExchange.micro_batch`."""
        with (
            super().micro_batch(last=last),
            nullcontext() if last else self._module.no_sync(),
            warnings.catch_warnings(),
        ):
            # Torch compares strides exactly, also of an axis of size 1 (one channel).
            warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
            yield

    def add_up(
        self, loss: Tensor, gradients: Sequence[Tensor], *, reports: int
    ) -> tuple[Tensor, Tensor]:
        """See `GradientExchange.add_up`."""
        (total,) = self._sum(loss, reports=reports)
        return total, torch.nn.utils.get_total_norm(gradients)
