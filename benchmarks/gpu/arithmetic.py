"""Operations of a step and data-sheet peaks of cards; needs no GPU."""

from __future__ import annotations

import re
from typing import NamedTuple

from mae.config.model import ModelConfig
from mae.config.objective import ObjectiveConfig


class Peak(NamedTuple):
    """Data-sheet peak of a card without sparsity, in operations a second."""

    words: frozenset[str]
    """The card's name contains all of them."""
    half: float
    """bf16 summed in float32; fp16 where the card has no bf16."""
    float32: float
    """Without tensor cores, as torch multiplies unless TF32 is asked for."""


def _peak(name: str, half: float, float32: float) -> Peak:
    return Peak(_words(name), half * 1e12, float32 * 1e12)


def _words(name: str) -> frozenset[str]:
    return frozenset(re.findall(r"[a-z0-9.]+", name.lower()))


# Source: NVIDIA's data sheets, without sparsity. The first whose words all stand in the name.
PEAKS = (
    _peak("H200 NVL", 835.5, 60.0),
    _peak("H200", 989.4, 66.9),
    _peak("H100 NVL", 835.5, 60.0),
    _peak("H100 PCIe", 756.0, 51.2),
    _peak("H100 HBM3", 989.4, 66.9),
    _peak("A100", 312.0, 19.5),
    _peak("L4", 121.0, 30.3),
    _peak("RTX 4090", 165.2, 82.6),
    _peak("V100 PCIe", 112.0, 14.0),
    _peak("V100", 125.0, 15.7),
)
# Parts of a card and slower ones that share a name.
_OTHERS = frozenset({"mig", "laptop", "d", "max"})


def find_peak(name: str) -> Peak | None:
    """Find a card by the name that its driver gives it; None if it is not in the table."""
    words = _words(name)
    if words & _OTHERS:
        return None
    return next((peak for peak in PEAKS if peak.words <= words), None)


def half_precision(capability: tuple[int, int]) -> str:
    """Name the half precision that a card of this compute capability multiplies fast."""
    return "bf16" if capability >= (8, 0) else "fp16"


def forward_macs(config: ModelConfig) -> float:
    """Count the multiply-accumulates of the published forward of one image.

    Products alone, attention's two included; every patch is projected and predicted, which the
    savings of decision 0002 leave out in part.

    Source: the published code, models_mae.py, counted by hand.
    """
    L, T, P = (
        config.num_patches,
        1 + ObjectiveConfig().num_keep(config.num_patches),
        config.patch_values,
    )
    D, E, ratio = config.width, config.decoder_width, config.mlp_ratio
    encoder = L * P * D + config.depth * _block_macs(T, D, mlp_ratio=ratio)
    blocks = config.decoder_depth * _block_macs(L + 1, E, mlp_ratio=ratio)
    return encoder + T * D * E + blocks + (L + 1) * E * P


def _block_macs(tokens: int, width: int, *, mlp_ratio: float) -> float:
    return tokens * (4 + 2 * mlp_ratio) * width**2 + 2 * tokens**2 * width


def step_flops(config: ModelConfig) -> float:
    """Count the operations of a step of one image: 2 x MAC, and 3 x forward.

    Less the gradient of the patch projection's input, which is not computed.
    """
    projection = config.num_patches * config.patch_values * config.width
    return 2 * (3 * forward_macs(config) - projection)


def share_of_peak(images_per_second: float, config: ModelConfig, peak: float) -> float:
    """Return the share of a card's peak that a rate of images comes to."""
    return images_per_second * step_flops(config) / peak
