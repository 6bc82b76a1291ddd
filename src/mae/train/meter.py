"""What a run tells about itself between two rows of its log."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch

from mae.data.batch import Batch
from mae.train.state import TrainState
from mae.train.step import Metrics


class StateBytes(NamedTuple):
    """Memory of the parts of a state, after a step."""

    weight_bytes: int
    gradient_bytes: int
    moment_bytes: int

    def said(self, peak: int) -> str:
        """Say the parts of a peak; what is left is pictures, and what a pass keeps of them."""
        gib = [f"{count / 2**30:.2f}" for count in (peak, *self, peak - sum(self))]
        names = "memory: {} GiB at the peak: weights {}, gradients {}, moments {}, pictures {}"
        return names.format(*gib)


def state_bytes(state: TrainState) -> StateBytes:
    """Count the bytes of weights, gradients and moments, averages of weights among these."""
    parameters = list(state.model.parameters())
    moments = (v for values in state.optimizer.state.values() for v in values.values())
    return StateBytes(
        weight_bytes=sum(p.nbytes for p in parameters),
        gradient_bytes=sum(p.grad.nbytes for p in parameters if p.grad is not None),
        moment_bytes=sum(v.nbytes for v in moments if isinstance(v, torch.Tensor)),
    )


class Meter:
    """Sum the loss on the device and the time on the host; read both when a row is due."""

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        self._began = time.perf_counter()
        self._waited = 0.0
        self._images = 0
        self._finite = 0
        self._loss: torch.Tensor | float = 0.0

    def timed(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Pass batches on, timing how long each was waited for."""
        iterator = iter(batches)
        while True:
            began = time.perf_counter()
            batch = next(iterator, None)
            self._waited += time.perf_counter() - began
            if batch is None:
                return
            yield batch

    def add(self, batch: Batch, metrics: Metrics) -> None:
        """Count a step; nothing is read back from the device."""
        self._images += len(batch.ids)
        if metrics.finite:
            self._finite += 1
            self._loss = self._loss + metrics.loss

    def row(self, metrics: Metrics) -> dict[str, float | None]:
        """Give the means since the last row, and begin anew.

        Returns:
            loss (mean over the steps that updated; None if there was none), lr, grad_norm (of
            the last step; None if not finite), images_per_second, data_seconds (waited for the
            loader), seconds, memory_bytes (peak of the device, or of the process on a CPU).
        """
        seconds = time.perf_counter() - self._began
        loss = self._loss / self._finite if self._finite else None
        row = {
            "loss": None if loss is None else float(loss),
            "lr": metrics.lr,
            "grad_norm": float(metrics.grad_norm) if metrics.finite else None,
            "images_per_second": self._images / seconds,
            "data_seconds": self._waited,
            "seconds": seconds,
            "memory_bytes": peak_memory(),
        }
        self._reset()
        return row


def peak_memory() -> int:
    """Give the peak so far: of the GPU's memory, or of the process where there is none."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts in KiB
