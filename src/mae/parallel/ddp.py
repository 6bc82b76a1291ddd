"""Gradients of a global batch whose images are divided among ranks: DistributedDataParallel.

Each rank runs its own micro-batches one after the other; the last one's backward pass adds up the
gradients of all ranks. One small all-reduce then adds up the loss and what all ranks must agree
on, so that every rank takes the same decisions from the same bits.
"""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mae.parallel.processes import Communicator


class _Loss(nn.Module):
    """A loss function with its model as a submodule, for DistributedDataParallel to wrap."""

    def __init__(self, model: nn.Module, loss: Callable[..., Tensor]) -> None:
        super().__init__()
        self.model = model
        self.loss = loss

    def forward(self, batch: object) -> Tensor:
        return self.loss(self.model, batch)


class GradientExchange:
    """The part of a training step that ranks compute together.

    Args:
        model: the same on all ranks; rank 0's parameters are sent to the others.
        loss: of (model, batch); compiled or not.
        ranks: the processes of the job.
        requested: returns the exit code of a stop that this rank was asked for, if any.
        stop_codes: the possible exit codes; of several requests, the last of these counts.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[..., Tensor],
        *,
        ranks: Communicator,
        requested: Callable[[], int | None],
        stop_codes: Sequence[int],
    ) -> None:
        self.stop: int | None = None
        """Exit code of the stop that the ranks agreed on in the last step; None: none."""
        self.reports = 0
        """Images reported by all ranks in the last step."""
        self._ranks, self._requested, self._stop_codes = ranks, requested, stop_codes
        with ranks.failures_of_others():
            self._module: Any = DistributedDataParallel(
                _Loss(model, loss), gradient_as_bucket_view=True
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        # Before the process group is closed, which the reducer keeps alive.
        self._module = None
        gc.collect()

    @property
    def world_size(self) -> int:
        """Number of ranks, by which DistributedDataParallel divides the sum of gradients."""
        return self._ranks.process.world_size

    def loss(self, model: nn.Module, batch: object) -> Tensor:
        """Return the loss of a micro-batch of this rank; its backward pass fills the gradients."""
        assert model is self._module.module.model
        loss: Tensor = self._module(batch)
        return loss

    @contextmanager
    def micro_batch(self, *, last: bool) -> Iterator[None]:
        """Around forward and backward pass of a micro-batch: the last of a step adds up all ranks.

        Raises:
            MaeError: if another rank failed, see `Communicator.failures_of_others`.
        """
        with (
            self._ranks.failures_of_others(),
            nullcontext() if last else self._module.no_sync(),
            warnings.catch_warnings(),
        ):
            # Torch compares strides exactly, also of an axis of size 1 (one channel).
            warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
            yield

    def add_up(self, loss: Tensor, *, reports: int) -> Tensor:
        """Return the sum of all ranks' losses, and add up what `read` returns.

        Args:
            loss: this rank's part of the loss, a scalar.
            reports: images that this rank has something to report on.
        """
        asked = self._requested()
        counts = [reports, *(asked == code for code in self._stop_codes)]
        self._sums = torch.cat([loss.reshape(1), loss.new_tensor(counts)])
        self._ranks.all_reduce(self._sums)
        return self._sums[0]

    def read(self, finite: Tensor) -> bool:
        """Read `finite` with the sums of `add_up`, all at once, into this object."""
        values = torch.cat([finite.reshape(1).to(self._sums), self._sums[1:]]).tolist()
        is_finite, reports, *asked = values
        self.reports = int(reports)
        codes = [code for code, count in zip(self._stop_codes, asked, strict=True) if count]
        self.stop = codes[-1] if codes else None
        return bool(is_finite)
