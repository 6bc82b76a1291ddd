"""What two ranks hold and send in a step, for test_plan.py: `python -m tests.jobs.bytes_of_ranks`.

Each prints a line a strategy: bytes of its parts of parameters, gradients and moments, bytes that
FSDP2 sends for a micro-batch, and bytes of the gradients that DDP adds up.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from mae.config.run import PretrainConfig
from mae.data.batching.batch import Batch
from mae.model.create import create
from mae.parallel.ddp import ReplicatedExchange
from mae.parallel.exchange import GradientExchange
from mae.parallel.fsdp import ShardedExchange
from mae.parallel.processes import open_communicator
from mae.runs.state import TrainState
from mae.train.resolve import new_state
from mae.train.step import OptimiserStep, pretraining_loss
from tests.model.tiny import tiny_config

CONFIGS = [
    PretrainConfig(
        # Even sizes, and blocks that outweigh the norms inside of them.
        model=tiny_config(grid=(4, 6), width=96, decoder_width=64),
        batch=4, device="cpu", strategy=strategy, precision=precision,
    )
    for strategy, precision in (("ddp", "float32"), ("fsdp", "float32"), ("fsdp", "bf16"))
]  # fmt: skip


def own(tensor: Tensor) -> int:
    part: Tensor = getattr(tensor, "to_local", lambda: tensor)()
    return part.nbytes


def held(state: TrainState) -> int:
    parameters = list(state.model.parameters())
    moments = (v for kept in state.optimizer.state.values() for v in kept.values())
    tensors = [*parameters, *(p.grad for p in parameters if p.grad is not None)]
    return sum(map(own, tensors)) + sum(own(v) for v in moments if v.ndim)


def main() -> None:
    torch.set_num_threads(1)
    sent = [0]

    def count(names: Sequence[str], *, halves: bool) -> None:
        name = next(name for name in names if hasattr(dist, name))  # newer torch first
        real = getattr(dist, name)

        def call(*words: Any, **named: Any) -> Any:
            given = named.get("input", words[1] if len(words) > 1 else None)
            # Of two ranks, each sends the other what it gathers whole, and half of what it adds up.
            sent[0] += given.nbytes // (2 if halves else 1)
            return real(*words, **named)

        setattr(dist, name, call)

    count(("all_gather_single", "all_gather_into_tensor"), halves=False)
    count(("reduce_scatter_single", "reduce_scatter_tensor"), halves=True)
    generator = torch.Generator().manual_seed(0)
    with open_communicator(timeout_s=60) as ranks:
        how: dict[str, Any] = {"ranks": ranks, "requested": lambda: None, "stop_codes": ()}
        for config in CONFIGS:
            model = config.model
            torch.manual_seed(0)
            state = new_state(create(model), config, ranks)
            exchange: GradientExchange = (
                ReplicatedExchange(state.model, pretraining_loss, **how)
                if config.strategy == "ddp"
                else ShardedExchange(pretraining_loss, passes=1, **how)
            )
            shape = (2, model.channels, *model.image_size)
            images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
            noise, ids = torch.rand(2, model.num_patches, generator=generator), torch.arange(2)
            with exchange:
                device = torch.device("cpu")
                step = OptimiserStep(
                    loss=pretraining_loss, config=config, device=device, exchange=exchange
                )
                sent[0] = 0
                step(state, Batch(images, noise, ids, ids), lr=1e-4)
            whole = sum(p.numel() for p in state.model.parameters() if p.requires_grad)
            print(held(state), sent[0], 4 * whole, flush=True)


if __name__ == "__main__":
    main()
