"""Parameters, FLOPs and activation bytes of a training step, computed from shapes.

Each term corresponds to a tensor or a matrix product of the modules in `mae.model` and has to
change with them; tests compare the sums with torch's counts.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from mae.config.dense import DenseConfig
from mae.config.model import ModelConfig, hidden_width
from mae.config.objective import ObjectiveConfig
from mae.model.packed_attention import KEPT_TOKENS, MOST_TOKENS
from mae.model.transformer import FEW_TOKENS

FLOAT32, HALF = 4, 2  # bytes


def count_parameters(config: ModelConfig, *, decoder: bool = True) -> tuple[int, int]:
    """Count the trained parameters, and those of the frozen position tables.

    Args:
        config: the network.
        decoder: whether it has one; without, the encoder alone is counted.
    """
    D, E, P = config.width, config.decoder_width, config.patch_values
    encoder = D + (P + 1) * D + config.depth * _block_parameters(D, config.mlp_ratio) + 2 * D
    if not decoder:
        return encoder, (1 + config.num_patches) * D
    rest = (D + 1) * E + E + config.decoder_depth * _block_parameters(E, config.mlp_ratio)
    head = 2 * E + (E + 1) * P
    return encoder + rest + head, (1 + config.num_patches) * (D + E)


def block_parameters(config: ModelConfig, *, decoder: bool = True) -> list[int]:
    """Count the parameters of each block: those of the encoder, then those of the decoder."""
    blocks = [_block_parameters(config.width, config.mlp_ratio)] * config.depth
    if decoder:
        own = _block_parameters(config.decoder_width, config.mlp_ratio)
        blocks += [own] * config.decoder_depth
    return blocks


def _block_parameters(width: int, mlp_ratio: float) -> int:
    hidden = hidden_width(width, mlp_ratio)
    attention = (width + 1) * 3 * width + (width + 1) * width
    return 4 * width + attention + (width + 1) * hidden + (hidden + 1) * width


def step_flops(
    config: ModelConfig, objective: ObjectiveConfig, *, checkpoint_every: int | None = None
) -> int:
    """Count the FLOPs of forward and backward of one image, two per multiply-accumulate.

    Norms, softmax, GELU and the optimiser are not counted.

    Args:
        config: the network.
        objective: its mask ratio sets the number of visible patches.
        checkpoint_every: blocks of a segment that the backward pass recomputes (see `Blocks`).
    """
    D, E, P = config.width, config.decoder_width, config.patch_values
    K = objective.num_keep(config.num_patches)
    hidden = config.num_patches - K
    blocks, T = config.decoder_depth - 1, 1 + config.num_patches
    ratio = config.mlp_ratio
    projection = K * P * D
    encoder = config.depth * _block_macs(1 + K, D, mlp_ratio=ratio)
    decoder = blocks * _block_macs(T, E, mlp_ratio=ratio)
    decoder += _block_macs(T, E, mlp_ratio=ratio, first=1 + K)
    # With the decoder's embedding and its head.
    macs = projection + encoder + decoder + (1 + K) * D * E + hidden * E * P
    again = 0
    if checkpoint_every is not None:
        # All but the last product of each segment, whose value is not needed.
        of_encoder, of_decoder = D * hidden_width(D, ratio), E * hidden_width(E, ratio)
        last = math.ceil(config.depth / checkpoint_every) * (1 + K) * of_encoder
        last += (math.ceil(config.decoder_depth / checkpoint_every) - 1) * T * of_decoder
        last += hidden * of_decoder
        again = encoder + decoder - last
    # The backward pass has two products for each of the forward; pixels need no gradient.
    return 2 * (3 * macs - projection + again)


def encoder_flops(config: ModelConfig) -> int:
    """Count the FLOPs of a forward pass of the encoder on one whole image, as `step_flops`."""
    D, L = config.width, config.num_patches
    blocks = config.depth * _block_macs(1 + L, D, mlp_ratio=config.mlp_ratio)
    return 2 * (L * config.patch_values * D + blocks)


def _block_macs(T: int, width: int, *, mlp_ratio: float, first: int = 0) -> int:
    F = T - first
    mlp = 2 * F * width * hidden_width(width, mlp_ratio)
    return 3 * T * width**2 + 2 * F * T * width + F * width**2 + mlp


class ActivationBytes(NamedTuple):
    """Bytes of one image that a forward pass holds for the backward pass."""

    kept: int
    """From the forward pass on."""
    recomputed: int
    """In the largest segment that the backward pass recomputes; 0 without recomputation."""


def activation_bytes(
    config: ModelConfig,
    objective: ObjectiveConfig | None,
    *,
    half: bool,
    on_cpu: bool,
    checkpoint_every: int | None = None,
    dense: DenseConfig | None = None,
) -> ActivationBytes:
    """Count the bytes of one image that the forward pass keeps for the backward pass.

    Args:
        config: the network.
        objective: its mask ratio sets the number of visible patches; None: a classifier, with the
            encoder's last norm, which exists for pool "cls".
        half: whether the forward runs under autocast to bf16 or fp16; residuals stay float32.
        on_cpu: whether attention of few tokens uses products of its own (`Attention`).
        checkpoint_every: blocks of a segment of which only the input is kept (see `Blocks`).
        dense: how a dense task runs the encoder; its heads are not counted.
    """
    D, E, L, P = config.width, config.decoder_width, config.num_patches, config.patch_values
    K = L if objective is None else objective.num_keep(L)
    value, hidden = HALF if half else FLOAT32, L - K
    given: dict[str, Any] = {"mlp_ratio": config.mlp_ratio, "value": value, "on_cpu": on_cpu}
    biased = dense is not None and dense.relative_positions is not None
    block = _block_bytes(1 + K, D, heads=config.num_heads, biased=biased, **given)
    encoder = [block] * config.depth
    if dense is not None:
        # torch's kernel on a CPU keeps it in float32 always.
        biases = bias_bytes(config, dense, value=FLOAT32 if on_cpu else value)
        encoder = [each + bias for each, bias in zip(encoder, biases, strict=True)]
    sides = [((1 + K) * D, encoder)]
    if objective is not None:
        given["heads"] = config.decoder_heads
        last = _block_bytes(1 + L, E, first=1 + K, **given)
        decoder = [_block_bytes(1 + L, E, **given)] * (config.decoder_depth - 1)
        sides.append(((1 + L) * E, [*decoder, last]))
    # The input of the patch projection, the last norms, and the errors before squaring.
    kept = K * P * value + _norm_bytes(1 + K, D, value=value)
    kept += _norm_bytes(hidden, E, value=value) + hidden * P * FLOAT32
    if checkpoint_every is None:
        return ActivationBytes(kept + sum(sum(blocks) for _, blocks in sides), 0)
    segments = []
    for values, blocks in sides:
        starts = range(0, len(blocks), checkpoint_every)
        kept += len(starts) * values * FLOAT32
        segments += [sum(blocks[start : start + checkpoint_every]) for start in starts]
    return ActivationBytes(kept, max(segments))


def bias_bytes(config: ModelConfig, dense: DenseConfig, *, value: int) -> list[int]:
    """Count the bytes of what relative positions add to the attention of each block, per image.

    Args:
        config: the network.
        dense: a table of positions is shared by all images, and is not counted.
        value: bytes of a number.
    """
    if dense.relative_positions != "decomposed":
        return [0] * config.depth
    (h, w), s = config.grid, dense.window or 0
    found = []
    for number in range(config.depth):
        pairs = (h * w) ** 2
        if s and number not in dense.global_blocks:  # windows are padded, see `GridWindows`
            pairs = (h + -h % s) * (w + -w % s) * s**2
        found.append(config.num_heads * pairs * value)
    return found


def _norm_bytes(T: int, width: int, *, value: int) -> int:
    """Count the bytes that a layer norm keeps: its input, mean and std; and its output."""
    return T * width * FLOAT32 + 2 * T * FLOAT32 + T * width * value


def _block_bytes(
    T: int,
    width: int,
    *,
    heads: int,
    mlp_ratio: float,
    value: int,
    on_cpu: bool,
    first: int = 0,
    biased: bool = False,
) -> int:
    F = T - first
    norms = _norm_bytes(T, width, value=value) + _norm_bytes(F, width, value=value)
    weights = heads * F * T * value
    if on_cpu and value == HALF and not biased and T <= MOST_TOKENS:  # `attend_packed`
        attention = 3 * T * width * value + (weights if T <= KEPT_TOKENS else 0)
    elif on_cpu and T <= FEW_TOKENS:
        attention = (F + 2 * T) * width * value + weights
    else:  # queries of every token, and a float32 for each row of the softmax
        attention = 3 * T * width * value + heads * F * FLOAT32
    mixed, mlp = F * width * value, 2 * F * hidden_width(width, mlp_ratio) * value
    return norms + attention + mixed + mlp
