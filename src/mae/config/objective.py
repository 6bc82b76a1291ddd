"""Pre-training objective: which patches are hidden, and what is predicted of them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from mae.config.model import require
from mae.errors import ConfigError

MaskKind = Literal["random", "block", "grid"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ObjectiveConfig:
    """What pre-training asks of a network: the hidden patches and the target of their pixels."""

    mask_kind: MaskKind = "random"
    """block: in cells of mask_block x mask_block; grid: all but one patch of each 2 x 2."""
    mask_block: int = 2
    """Edge of a cell in patches; with mask_kind block alone."""
    mask_ratio: float = 0.75
    """Fraction of the patches that is hidden."""
    normalize_target: bool = True
    """Predict pixels normalised by the mean and std of their own patch."""
    target_eps: float = 1e-6
    """Added to a patch's variance before its root (published: 1e-6); more quiets blank patches."""

    def __post_init__(self) -> None:
        require(self.mask_block >= 1, "mask_block", self.mask_block, "at least 1")
        if self.mask_block != 2 and self.mask_kind != "block":
            raise ConfigError(
                f"mask_block: has no effect with mask_kind {self.mask_kind}, expected with block; "
                "drop it"
            )
        if self.mask_kind == "grid" and self.mask_ratio != 0.75:
            raise ConfigError(
                f"mask_ratio: got {self.mask_ratio:g}, expected 0.75, as mask_kind grid keeps one "
                "of 4 patches; choose --mask-kind random for another ratio"
            )
        require(self.target_eps > 0, "target_eps", self.target_eps, "a number above 0")

    def require_grid(self, grid: tuple[int, int]) -> None:
        """Check that patches of a grid, h x w, can be hidden as asked.

        Raises:
            ConfigError: if not, with what to change.
        """
        self.num_keep(grid[0] * grid[1])
        if self.mask_kind == "grid" and (grid[0] % 2 or grid[1] % 2):
            raise ConfigError(
                f"mask_kind: got grid for {grid[0]} x {grid[1]} patches, expected even numbers, as "
                "it keeps one of each 2 x 2; choose another image or patch size"
            )

    def num_keep(self, num_patches: int) -> int:
        """Count the visible patches K of an image with `num_patches` patches.

        Raises:
            ConfigError: if the ratio hides all or none of them.
        """
        keep = num_keep(num_patches, self.mask_ratio)
        if not 0 < keep < num_patches:
            raise ConfigError(
                f"mask_ratio: {self.mask_ratio} of {num_patches} patches would keep {keep}; "
                "expected a ratio that keeps at least one patch and hides at least one, or larger "
                "images"
            )
        return keep


def num_keep(num_patches: int, mask_ratio: float) -> int:
    """Count the visible patches: the published floor, guarded against rounding errors.

    `int(100 * (1 - 0.9))` is 9, since 1 - 0.9 is 0.0999...98; 1e-4 is added before the floor, so
    that 10 are kept (docs/decisions/0003-floor-with-guard.md).
    """
    return math.floor(num_patches * (1 - mask_ratio) + 1e-4)
