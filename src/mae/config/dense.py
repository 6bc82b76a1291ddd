"""Configuration of networks for dense tasks: how the encoder runs on large images, and heads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mae.config.model import require, require_numbers


@dataclass(frozen=True, kw_only=True, slots=True)
class DenseConfig:
    """How the encoder's blocks see an image of any size (default: as the plain encoder)."""

    window: int | None = None
    """Edge in patches of the windows that blocks attend within; none: the whole image."""
    global_blocks: tuple[int, ...] = ()
    """Blocks that attend to the whole image all the same, from 0, with window."""
    relative_positions: Literal["decomposed", "table"] | None = None
    """Added to the attention, from zero: ViTDet's (decomposed) or BEiT's (table); none: nothing."""
    layer_scale: float | None = None
    """Initial factor of each residual branch, trained per channel; none: no factors."""

    def __post_init__(self) -> None:
        require_numbers(self, "at least 1", "window", group="dense.")
        require_numbers(self, "at least 0", "global_blocks", group="dense.")
        require_numbers(self, "above 0", "layer_scale", group="dense.")
        fits = not self.global_blocks or self.window is not None
        require(fits, "dense.global_blocks", self.global_blocks, "none without dense.window")
        fits = self.relative_positions != "table" or self.window is None
        require(fits, "dense.relative_positions", "table", "decomposed with dense.window")

    @property
    def has_cls(self) -> bool:
        """Whether the cls token stays: windows and decomposed positions have no place for it."""
        return self.window is None and self.relative_positions != "decomposed"


@dataclass(frozen=True, kw_only=True, slots=True)
class HeadConfig:
    """Head of a semantic segmentation (defaults: UPerNet as published for ADE20K)."""

    kind: Literal["linear", "upernet"] = "upernet"
    """One 1 x 1 convolution, or UPerNet."""
    blocks: tuple[int, ...] | None = None
    """Blocks whose maps it takes, from 0, four for upernet; none: 1/3, 1/2, 2/3 and all of the
    depth, or the last for linear."""
    channels: int = 512
    """Channels of the convolutions of upernet."""
    norm: Literal["batch", "group"] = "batch"
    """Norm of the convolutions: over the images of a pass, or over groups of channels."""
    dropout: float = 0.1
    """Probability that a channel is dropped before the last convolution."""
    auxiliary_channels: int = 256
    """Channels of the auxiliary head on the third map, for training only; 0: no such head."""

    def __post_init__(self) -> None:
        require_numbers(self, "at least 1", "channels", group="head.")
        require_numbers(self, "at least 0", "auxiliary_channels", group="head.")
        require_numbers(self, "at least 0, below 1", "dropout", group="head.")
        count = 4 if self.kind == "upernet" else len(self.blocks or (0,))
        blocks = self.blocks
        fits = blocks is None or (len(blocks) == count >= 1 and sorted(blocks) == [*blocks])
        most = "four, " if self.kind == "upernet" else ""
        require(fits, "head.blocks", blocks, f"{most}in ascending order, as in 3 5 7 11")

    @property
    def has_auxiliary(self) -> bool:
        """Whether there is an auxiliary head."""
        return self.kind == "upernet" and self.auxiliary_channels > 0

    def blocks_of(self, depth: int) -> tuple[int, ...]:
        """Return the blocks whose maps the head takes, of an encoder of this depth.

        The default is mmsegmentation's 3, 5, 7, 11 of 12 and BEiT's 7, 11, 15, 23 of 24.

        Raises:
            ConfigError: unless the last is the encoder's last block, since blocks after it would
                be trained for nothing.
        """
        if self.blocks is None:
            if self.kind == "linear":
                return (depth - 1,)
            return tuple(max(0, depth * n // 12 - 1) for n in (4, 6, 8, 12))
        require(self.blocks[-1] == depth - 1, "head.blocks", self.blocks,
                f"the last block, {depth - 1}, as the last")  # fmt: skip
        return self.blocks
