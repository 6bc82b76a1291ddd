"""One optimiser step over exactly one global batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mae.config import FitConfig
from mae.data.batch import Batch
from mae.train.state import TrainState

Loss = Callable[[nn.Module, Batch], Tensor]
"""Gives the mean loss of a (micro-)batch that lies on the model's device."""


class Metrics(NamedTuple):
    """What a step tells; tensors stay on the device until a log is due."""

    loss: Tensor
    grad_norm: Tensor
    lr: float
    finite: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimiserStep:
    """Forward and backward of each micro-batch, the finite check, clipping, the update."""

    loss: Loss
    config: FitConfig
    device: torch.device

    def __call__(self, state: TrainState, batch: Batch, *, lr: float) -> Metrics:
        """Update the parameters at this learning rate, unless loss or gradient is not finite."""
        model, optimizer = state.model, state.optimizer
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=self.device)
        for part in batch.split(self.config.micro_batch or len(batch.ids)):
            with torch.autocast(self.device.type, torch.bfloat16, self.config.precision == "bf16"):
                loss = self.loss(model, part.to(self.device))
            # The last micro-batch may be smaller; shares make the sum the whole batch's mean.
            share = len(part.ids) / len(batch.ids)
            (loss * share).backward()  # type: ignore[no-untyped-call]
            total += loss.detach() * share
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        grad_norm = torch.nn.utils.get_total_norm(gradients)
        # The one value read back per step, before the update (design 4.5).
        finite = bool(total.isfinite() & grad_norm.isfinite())
        if finite:
            if self.config.optim.clip_norm is not None:
                torch.nn.utils.clip_grads_with_norm_(
                    model.parameters(), self.config.optim.clip_norm, grad_norm
                )
            optimizer.step()
        return Metrics(total, grad_norm, lr, finite)


def pretraining_loss(model: nn.Module, batch: Batch) -> Tensor:
    """Give the reconstruction loss of a batch of stored pixels."""
    images = model.normalize(batch.images)  # type: ignore[operator]
    return model(images, noise=batch.noise).loss  # type: ignore[no-any-return]
