"""Optimizer step over one global batch, split into micro-batches."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from mae.config.run import FinetuneConfig, FitConfig
from mae.data.batching.batch import Batch
from mae.model.onednn_linear import HalfWeights
from mae.runs.state import TrainState
from mae.train.ema import update_ema
from mae.train.optim.muon import Muon

if TYPE_CHECKING:
    from mae.parallel.exchange import GradientExchange

Loss = Callable[[nn.Module, Batch], Tensor]
"""Returns the mean loss of a (micro-)batch on the model's device."""


class Metrics(NamedTuple):
    """Metrics of a step; tensors stay on the device until a log row is due."""

    loss: Tensor
    grad_norm: Tensor
    lr: float
    finite: bool
    overflow: bool = False
    """Whether only the fp16 loss scale caused non-finite gradients; the next scale is smaller."""


@dataclass(kw_only=True, slots=True)
class OptimiserStep:
    """Forward and backward of each micro-batch, the finite check, clipping, the update."""

    loss: Loss
    config: FitConfig
    device: torch.device
    micro_batch: int | None = None
    """Images of one pass; none: as configured, or else the whole batch."""
    exchange: GradientExchange | None = None
    """The ranks that divide each batch; None: this process computes all of it."""
    _pool: ThreadPoolExecutor | None = field(default=None, init=False)
    _copies: HalfWeights | None = field(default=None, init=False)

    @contextmanager
    def side_by_side(self) -> Iterator[None]:
        """On a CPU, compute the micro-batches of each step in parallel threads.

        This is faster than parallelising each operation
        (docs/decisions/0009-micro-batches-side-by-side.md). The result does not depend on timing:
        gradients are added in the order of the micro-batches.
        """
        threads, batch = torch.get_num_threads(), self.config.batch
        at_once = min(threads, -(-batch // (self._pass_size or batch)))
        # A compiled function uses all threads and supports a single caller, as DDP does.
        alone = self.config.compile or self.exchange is not None
        if self.device.type != "cpu" or at_once == 1 or alone:
            yield
            return
        # The thread count is partly global and partly per thread. It is lowered in this thread
        # too: OpenMP's worker threads spin for a while after every parallel operation.
        limit_threads = partial(torch.set_num_threads, threads // at_once)
        limit_threads()
        try:
            with ThreadPoolExecutor(at_once, initializer=limit_threads) as self._pool:
                yield
        finally:
            self._pool = None
            torch.set_num_threads(threads)

    def __call__(
        self, state: TrainState, batch: Batch, *, lr: float, fixed_lr: float = 0.0
    ) -> Metrics:
        """Update the parameters at learning rate `lr`, unless loss or gradient is not finite.

        The learning rate of a group with a `scale` is fixed_lr + scale * (lr - fixed_lr).
        """
        model, optimizer = state.model, state.optimizer
        for group in optimizer.param_groups:
            group["lr"] = fixed_lr + (lr - fixed_lr) * group.get("scale", 1.0)
        # A plain factor, so that threads do not share the scaler.
        one = torch.ones((), device=self.device)
        factor = one if state.scaler is None else state.scaler.scale(one)
        optimizer.zero_grad(set_to_none=True)
        parts = list(batch.split(self._pass_size or len(batch.ids)))
        with self._half_weights(state):
            if self._pool is not None:
                total = self._spread(self._pool, model, parts, factor=factor)
            else:
                total = self._in_turn(model, parts, factor=factor)
        if state.scaler is not None:
            state.scaler.unscale_(optimizer)
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        if self.exchange is None:
            grad_norm = torch.nn.utils.get_total_norm(gradients)
        else:
            reports = len(batch.bad) + len(batch.warned)
            total, grad_norm = self.exchange.add_up(total, gradients, reports=reports)
        is_finite = total.isfinite() & grad_norm.isfinite()
        # The only device-to-host read per step, before the update; all ranks read the same.
        finite = bool(is_finite) if self.exchange is None else self.exchange.read(is_finite)
        if finite:
            if (limit := self.config.optim.clip_norm) is not None:
                torch.nn.utils.clip_grads_with_norm_(model.parameters(), limit, grad_norm)
            ema = self.config.ema if isinstance(self.config, FinetuneConfig) else None
            with update_ema(optimizer, decay=ema):
                if isinstance(optimizer, Muon):
                    optimizer.step(pool=self._pool)
                else:
                    optimizer.step()
        overflow = False
        if state.scaler is not None:
            # Finite loss and a scale that can still shrink: an overflow of fp16, not divergence.
            overflow = not finite and bool(total.isfinite() & (factor > 1))
            state.scaler.update()
        return Metrics(total, grad_norm, lr, finite, overflow)

    @property
    def _pass_size(self) -> int | None:
        return self.micro_batch or self.config.fixed_micro_batch

    def rehearse(self, model: nn.Module, part: Batch) -> None:
        """Accumulate the gradients of a micro-batch without an update.

        Nothing else changes; the caller discards the gradients.
        """
        self._weighted_loss(model, part, of=len(part.ids)).backward()  # type: ignore[no-untyped-call]

    def _half_weights(self, state: TrainState) -> AbstractContextManager[None]:
        """Cast the weights once for all micro-batches of a step: in bf16, on a CPU, if whole."""
        if self.config.half != "bf16" or self.device.type != "cpu" or self.config.compile:
            return nullcontext()
        if state.is_sharded:
            return nullcontext()
        if self._copies is None or self._copies.model is not state.model:
            self._copies = HalfWeights(state.model)
        return self._copies

    def _weighted_loss(self, model: nn.Module, part: Batch, *, of: float) -> Tensor:
        """Return the loss of a micro-batch, weighted by its fraction of the batch."""
        compute = self.loss if self.exchange is None else self.exchange.loss
        half = torch.float16 if self.config.half == "fp16" else torch.bfloat16
        with torch.autocast(self.device.type, half, self.config.half is not None):
            loss = compute(model, part.to(self.device))
        return loss * (len(part.ids) / of)

    def _in_turn(self, model: nn.Module, parts: Sequence[Batch], *, factor: Tensor) -> Tensor:
        """Compute the micro-batches one after the other, accumulate their gradients.

        Returns:
            The loss of this process's part of the batch.
        """
        exchange, total = self.exchange, torch.zeros((), device=self.device)
        if exchange is None:
            whole = sum(len(part.ids) for part in parts)
        else:  # the average over ranks becomes the sum
            whole, factor = self.config.batch, factor * exchange.world_size
        passes = len(parts) if exchange is None else max(len(parts), exchange.passes)
        for number in range(passes):
            last, again = number == passes - 1, number >= len(parts)
            part = parts[-1] if again else parts[number]
            with nullcontext() if exchange is None else exchange.micro_batch(last=last):
                loss = self._weighted_loss(model, part, of=math.inf if again else whole)
                (loss * factor).backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        return total

    def _spread(
        self, pool: ThreadPoolExecutor, model: nn.Module, parts: Sequence[Batch], *, factor: Tensor
    ) -> Tensor:
        """Compute the micro-batches in threads, accumulate their gradients, return their loss."""
        parameters = [p for p in model.parameters() if p.requires_grad]
        whole = sum(len(part.ids) for part in parts)

        def work(part: Batch) -> tuple[Tensor, tuple[Tensor | None, ...]]:
            loss = self._weighted_loss(model, part, of=whole)
            return loss.detach(), torch.autograd.grad(loss * factor, parameters, allow_unused=True)

        total = torch.zeros(())
        for loss, gradients in pool.map(work, parts):
            total += loss
            for parameter, gradient in zip(parameters, gradients, strict=True):
                if gradient is None:
                    continue
                if parameter.grad is None:
                    # Contiguous as after `backward`: the fused optimiser ignores strides.
                    parameter.grad = gradient.contiguous()
                else:
                    parameter.grad += gradient
        return total


def pretraining_loss(model: nn.Module, batch: Batch) -> Tensor:
    """Return the reconstruction loss of a batch of stored pixels."""
    images = model.normalize(batch.images)  # type: ignore[operator]
    return model(images, noise=batch.noise).loss  # type: ignore[no-any-return]
