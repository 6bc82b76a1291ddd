"""What the ranks that divide a batch exchange in a step, however they hold the parameters.

One small all-reduce adds up the loss and what all ranks must agree on, so that every rank takes
the same decisions from the same bits.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Self

import torch
from torch import Tensor, nn

from mae.parallel.processes import Communicator


class GradientExchange(ABC):
    """The part of a training step that ranks compute together.

    Args:
        ranks: the processes of the job.
        requested: returns the exit code of a stop that this rank was asked for, if any.
        stop_codes: the possible exit codes; of several requests, the last of these counts.
    """

    passes = 1
    """Least number of micro-batches that each rank computes in a step."""

    def __init__(
        self,
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

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return

    @property
    def world_size(self) -> int:
        """Number of ranks, by which the sum of gradients is divided."""
        return self._ranks.process.world_size

    @abstractmethod
    def loss(self, model: nn.Module, batch: object) -> Tensor:
        """Return the loss of a micro-batch of this rank; its backward pass fills the gradients."""

    @contextmanager
    def micro_batch(self, *, last: bool) -> Iterator[None]:
        """Around forward and backward pass of a micro-batch: the last of a step adds up all ranks.

        Raises:
            MaeError: if another rank failed, see `Communicator.failures_of_others`.
        """
        del last
        with self._ranks.failures_of_others():
            yield

    @abstractmethod
    def add_up(
        self, loss: Tensor, gradients: Sequence[Tensor], *, reports: int
    ) -> tuple[Tensor, Tensor]:
        """Return the sum of all ranks' losses and the norm of the gradients.

        It also adds up what `read` returns.

        Args:
            loss: this rank's part of the loss, a scalar.
            gradients: of the trained parameters, after the last micro-batch.
            reports: images that this rank has something to report on.
        """

    def _sum(self, *values: Tensor, reports: int) -> tuple[Tensor, ...]:
        """Return the sums of scalars over all ranks, and keep those that `read` returns."""
        asked = self._requested()
        counts = [reports, *(asked == code for code in self._stop_codes)]
        sums = torch.cat([torch.stack(values), values[0].new_tensor(counts)])
        self._ranks.all_reduce(sums)
        self._counts = sums[len(values) :]
        return sums[: len(values)].unbind()

    def read(self, finite: Tensor) -> bool:
        """Read `finite` with the sums of `add_up`, all at once, into this object."""
        values = torch.cat([finite.reshape(1).to(self._counts), self._counts]).tolist()
        is_finite, reports, *asked = values
        self.reports = int(reports)
        codes = [code for code, count in zip(self._stop_codes, asked, strict=True) if count]
        self.stop = codes[-1] if codes else None
        return bool(is_finite)
