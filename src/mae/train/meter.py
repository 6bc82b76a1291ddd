"""Training metrics for the log: loss, throughput and memory."""

from __future__ import annotations

import math
import resource
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch

from mae.data.batching.batch import Batch
from mae.runs.state import TrainState
from mae.train.step import Metrics


def state_bytes(state: TrainState) -> dict[str, int]:
    """Count the bytes of weights, gradients and moments of this rank; moments include averages."""
    parameters = list(state.model.parameters())
    moments = (v for values in state.optimizer.state.values() for v in values.values())
    return {
        "weights": sum(map(_own_bytes, parameters)),
        "gradients": sum(_own_bytes(p.grad) for p in parameters if p.grad is not None),
        "moments": sum(_own_bytes(v) for v in moments if isinstance(v, torch.Tensor)),
    }


def _own_bytes(tensor: torch.Tensor) -> int:
    """Count the bytes of a tensor, or of this rank's part of it."""
    own: torch.Tensor = getattr(tensor, "to_local", lambda: tensor)()
    return own.nbytes


def memory_message(parts: Mapping[str, int], peak: int) -> str:
    """Describe the parts of a peak; the remainder is images and their activations."""
    counts = {**parts, "images": peak - sum(parts.values())}
    named = ", ".join(f"{name} {count / 2**30:.2f}" for name, count in counts.items())
    return f"memory: {peak / 2**30:.2f} GiB at the peak: {named}"


RECENT = 10
"""The running mean of the loss covers the last tenth of the steps so far."""


def running_mean(points: Sequence[tuple[float, float]]) -> float:
    """Return the mean of the last tenth of a curve.

    Args:
        points: (x, mean of y since the point before) by ascending x from 0, x in steps or
            images. A point that starts before the last tenth counts in full.

    Returns:
        The mean; nan where there is no point.
    """
    total = weight = 0.0
    end = points[-1][0] if points else 0.0
    for place in reversed(range(len(points))):
        x, y = points[place]
        if weight and RECENT * (end - x) >= end:
            break
        length = x - (points[place - 1][0] if place else 0.0)
        total, weight = total + length * y, weight + length
    return total / weight if weight else math.nan


def losses(rows: Iterable[Mapping[str, Any]]) -> list[tuple[float, float]]:
    """Return (step, loss) of the rows of a log with a finite loss."""
    found = ((row["step"], row.get("loss")) for row in rows)
    return [(step, loss) for step, loss in found if loss is not None and math.isfinite(loss)]


class Meter:
    """Accumulate the loss on the device and times on the host, read when a log row is due.

    `float()` of a meter is the running mean of the loss.

    Args:
        rows: log rows of earlier starts of the run.
        step: step at which training continues.
        images_per_step: images of a step, of all ranks.
    """

    def __init__(
        self,
        rows: Iterable[Mapping[str, Any]] = (),
        *,
        step: int = 0,
        images_per_step: int = 1,
    ) -> None:
        self._images_per_step = images_per_step
        self._losses = losses(rows)
        self._step = step
        self._reset()

    def __float__(self) -> float:
        loss = self._mean()
        return running_mean([*self._losses, *([] if loss is None else [(self._step, loss)])])

    def _reset(self) -> None:
        self._began = time.perf_counter()
        self._waited = 0.0
        self._images = 0
        self._finite = 0
        self._loss: torch.Tensor | float = 0.0

    def timed(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Yield the batches and measure the time spent waiting for them."""
        iterator = iter(batches)
        while True:
            began = time.perf_counter()
            batch = next(iterator, None)
            self._waited += time.perf_counter() - began
            if batch is None:
                return
            yield batch

    def add(self, metrics: Metrics) -> None:
        """Count a step, without reading from the device."""
        self._step += 1
        self._images += self._images_per_step
        if metrics.finite:
            self._finite += 1
            self._loss = self._loss + metrics.loss

    def row(self, metrics: Metrics) -> dict[str, float | None]:
        """Return the means since the last row and reset.

        Returns:
            loss (mean over steps with an update; None if there was none), lr, grad_norm (of the
            last step; None if not finite), images_per_second, data_seconds (waiting for the
            loader), seconds, memory_bytes (peak of the device, or of the process on a CPU).
        """
        seconds = time.perf_counter() - self._began
        loss = self._mean()
        if loss is not None:
            self._losses.append((self._step, loss))
        row = {
            "loss": loss,
            "lr": metrics.lr,
            "grad_norm": float(metrics.grad_norm) if metrics.finite else None,
            "images_per_second": self._images / seconds,
            "data_seconds": self._waited,
            "seconds": seconds,
            "memory_bytes": peak_memory(),
        }
        self._reset()
        return row

    def _mean(self) -> float | None:
        return float(self._loss / self._finite) if self._finite else None


def peak_memory() -> int:
    """Return the peak memory so far in bytes: of the GPU, or of the process without one."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts in KiB
