"""What ranks gather and send in a training step, in bytes per rank, and which runs FSDP2 takes.

Algorithms are rings, by which N ranks add up b bytes as each sends 2 (N - 1) / N b, and gather or
scatter them as each sends (N - 1) / N b.
"""

from __future__ import annotations

from collections.abc import Sequence

from mae.config.run import FinetuneConfig, FitConfig, PretrainConfig
from mae.model.costs import FLOAT32, HALF


def gathered_bytes(blocks: Sequence[int], parameters: int, *, half: bool) -> int:
    """Return the bytes that FSDP2 holds at a time beside a rank's part of the state.

    What is outside of blocks stays for the step, with its gradients. Of the blocks, one computes
    while the next one is gathered and the gradients of the one before are added up.

    Args:
        blocks: parameters of each block.
        parameters: all of them, frozen ones included.
        half: whether blocks are gathered in half precision; gradients are added up in float32.
    """
    value, copies = (HALF, HALF) if half else (FLOAT32, 0)
    outside = (2 * FLOAT32 + copies) * (parameters - sum(blocks))
    return outside + (3 * value + FLOAT32) * max(blocks)


def ddp_wire_bytes(parameters: int, *, ranks: int) -> int:
    """Return the bytes that a rank sends in a step with DDP, which adds up the gradients once."""
    return round(2 * (ranks - 1) / ranks * FLOAT32 * parameters)


def fsdp_wire_bytes(
    blocks: Sequence[int], parameters: int, frozen: int, *, ranks: int, half: bool
) -> int:
    """Return the bytes that a rank sends for a micro-batch with FSDP2.

    Blocks are gathered in the forward and in the backward pass, the rest once.

    Args:
        blocks: parameters of each block.
        parameters: trained ones.
        frozen: frozen ones.
        ranks: number of ranks.
        half: whether blocks are gathered in half precision; gradients are added up in float32.
    """
    gathered = 2 * (HALF if half else FLOAT32) * sum(blocks)
    gathered += FLOAT32 * (parameters + frozen - sum(blocks))
    return round((ranks - 1) / ranks * (gathered + FLOAT32 * parameters))


def why_not_sharded(config: FitConfig) -> str:
    """Return why FSDP2 cannot train a run, and what to do; empty if it can."""
    if not isinstance(config, PretrainConfig | FinetuneConfig):
        return "strategy: fsdp is for pretrain and finetune; use --strategy ddp"
    if config.half == "fp16":
        return (
            "precision: fp16 cannot be trained with --strategy fsdp, since each rank would scale "
            "its loss by itself; use bf16, or --strategy ddp"
        )
    if config.compile:
        return "compile: not with --strategy fsdp; drop --compile, or use --strategy ddp"
    return ""
