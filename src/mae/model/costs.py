"""Parameters, FLOPs and activation bytes of a training step, computed from shapes.

Each term corresponds to a tensor or a matrix product of the modules in `mae.model` and has to
change with them; tests compare the sums with torch's counts.
"""

from __future__ import annotations

from typing import Any

from mae.config.model import ModelConfig, hidden_width
from mae.config.objective import ObjectiveConfig
from mae.model.transformer import FEW_TOKENS

FLOAT32, HALF = 4, 2  # bytes


def count_parameters(config: ModelConfig) -> tuple[int, int]:
    """Count the trained parameters, and those of the frozen position tables."""
    D, E, P = config.width, config.decoder_width, config.patch_values
    encoder = D + (P + 1) * D + config.depth * _block_parameters(D, config.mlp_ratio) + 2 * D
    decoder = (D + 1) * E + E + config.decoder_depth * _block_parameters(E, config.mlp_ratio)
    head = 2 * E + (E + 1) * P
    return encoder + decoder + head, (1 + config.num_patches) * (D + E)


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
        ends = (_runs(config.depth, checkpoint_every) * (1 + K) * of_encoder
                + (_runs(config.decoder_depth, checkpoint_every) - 1) * T * of_decoder
                + hidden * of_decoder)  # fmt: skip
        again = encoder + decoder - ends
    # The backward pass has two products for each of the forward; pixels need no gradient.
    return 2 * (3 * macs - projection + again)


def _runs(depth: int, every: int) -> int:
    return -(-depth // every)


def _block_macs(T: int, width: int, *, mlp_ratio: float, first: int = 0) -> int:
    F = T - first
    mlp = 2 * F * width * hidden_width(width, mlp_ratio)
    return 3 * T * width**2 + 2 * F * T * width + F * width**2 + mlp


def kept_bytes(
    config: ModelConfig,
    objective: ObjectiveConfig,
    *,
    half: bool,
    on_cpu: bool,
    checkpoint_every: int | None = None,
) -> int:
    """Count the bytes of one image that the forward pass keeps for the backward pass.

    Args:
        config: the network.
        objective: its mask ratio sets the number of visible patches.
        half: whether the forward runs under autocast to bf16 or fp16; residuals stay float32.
        on_cpu: whether attention of few tokens uses explicit products (`attend`).
        checkpoint_every: blocks of a segment of which only the input is kept (see `Blocks`).
    """
    D, E, P = config.width, config.decoder_width, config.patch_values
    K = objective.num_keep(config.num_patches)
    value, hidden = HALF if half else FLOAT32, config.num_patches - K
    encoder, decoder = _bytes_by_block(config, objective, value=value, on_cpu=on_cpu)
    blocks = sum(encoder) + sum(decoder)
    if checkpoint_every is not None:
        blocks = _runs(config.depth, checkpoint_every) * (1 + K) * D * FLOAT32
        T = 1 + config.num_patches
        blocks += _runs(config.decoder_depth, checkpoint_every) * T * E * FLOAT32
    norms = _norm_bytes(1 + K, D, value=value) + _norm_bytes(hidden, E, value=value)
    # The input of the patch projection, and the errors before squaring.
    return K * P * value + blocks + norms + hidden * P * FLOAT32


def classifier_bytes(
    config: ModelConfig, *, half: bool, on_cpu: bool, checkpoint_every: int | None = None
) -> int:
    """Count the bytes of one image that a classifier keeps, including one recomputed segment.

    Args:
        config: the network; every patch is visible.
        half: see `kept_bytes`.
        on_cpu: see `kept_bytes`.
        checkpoint_every: see `kept_bytes`.
    """
    T, value = 1 + config.num_patches, HALF if half else FLOAT32
    ratio, heads = config.mlp_ratio, config.num_heads
    block = _block_bytes(T, config.width, heads=heads, mlp_ratio=ratio, value=value, on_cpu=on_cpu)
    blocks = config.depth * block
    if checkpoint_every is not None:
        inputs = _runs(config.depth, checkpoint_every) * T * config.width * FLOAT32
        blocks = inputs + min(checkpoint_every, config.depth) * block
    # Includes the encoder's last norm, which exists for pool "cls".
    norm = _norm_bytes(T, config.width, value=value)
    return config.num_patches * config.patch_values * value + blocks + norm


def recomputed_bytes(
    config: ModelConfig,
    objective: ObjectiveConfig,
    *,
    half: bool,
    on_cpu: bool,
    checkpoint_every: int,
) -> int:
    """Count the bytes of one image in the largest segment that the backward pass recomputes.

    Args:
        config: the network.
        objective: its mask ratio sets the number of visible patches.
        half: see `kept_bytes`.
        on_cpu: see `kept_bytes`.
        checkpoint_every: blocks of a segment.
    """
    sides = _bytes_by_block(config, objective, value=HALF if half else FLOAT32, on_cpu=on_cpu)
    return max(
        sum(side[start : start + checkpoint_every])
        for side in sides
        for start in range(0, len(side), checkpoint_every)
    )


def _bytes_by_block(
    config: ModelConfig, objective: ObjectiveConfig, *, value: int, on_cpu: bool
) -> tuple[list[int], list[int]]:
    """Count the bytes of one image that each block of encoder and decoder keeps."""
    T, heads = 1 + config.num_patches, config.decoder_heads
    K = objective.num_keep(config.num_patches)
    given: dict[str, Any] = {"mlp_ratio": config.mlp_ratio, "value": value, "on_cpu": on_cpu}
    encoder = [_block_bytes(1 + K, config.width, heads=config.num_heads, **given)] * config.depth
    decoder = [_block_bytes(T, config.decoder_width, heads=heads, **given)]
    last = _block_bytes(T, config.decoder_width, heads=heads, first=1 + K, **given)
    return encoder, [*decoder * (config.decoder_depth - 1), last]


def _norm_bytes(T: int, width: int, *, value: int) -> int:
    """Count the bytes that a layer norm keeps: its input, mean and std; and its output."""
    return T * width * FLOAT32 + 2 * T * FLOAT32 + T * width * value


def _block_bytes(
    T: int, width: int, *, heads: int, mlp_ratio: float, value: int, on_cpu: bool, first: int = 0
) -> int:
    F = T - first
    norms = _norm_bytes(T, width, value=value) + _norm_bytes(F, width, value=value)
    if on_cpu and T <= FEW_TOKENS:
        attention = (F + 2 * T) * width * value + heads * F * T * value
    else:  # queries of every token, and a float32 for each row of the softmax
        attention = 3 * T * width * value + heads * F * FLOAT32
    mixed, mlp = F * width * value, 2 * F * hidden_width(width, mlp_ratio) * value
    return norms + attention + mixed + mlp
