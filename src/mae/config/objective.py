"""Pre-training objective: which patches are hidden, and what is predicted of them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from mae.config.model import require, require_numbers
from mae.errors import ConfigError

MaskKind = Literal["random", "block", "grid"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ObjectiveConfig:
    """The hidden patches of an image, and the target that is predicted for them."""

    mask_kind: MaskKind = "random"
    """Mask; block: cells of mask_block x mask_block; grid: all but one patch of each 2 x 2."""
    mask_block: int = 2
    """Edge of the cells in patches, for mask_kind block."""
    mask_ratio: float = 0.75
    """Fraction of the patches that is hidden."""
    normalize_target: bool = True
    """Predict pixels normalised by the mean and std of their own patch."""
    target_eps: float = 1e-6
    """Added to a patch's variance before its root (published: 1e-6); more quiets blank patches."""

    def __post_init__(self) -> None:
        kind, edge, ratio = self.mask_kind, self.mask_block, self.mask_ratio
        require_numbers(self, "at least 1", "mask_block")
        require(edge == 2 or kind == "block", "mask_block", edge, "2 unless mask_kind is block")
        require(ratio == 0.75 or kind != "grid", "mask_ratio", ratio, "0.75 with mask_kind grid")
        require_numbers(self, "a number above 0", "target_eps")

    def require_grid(self, grid: tuple[int, int]) -> None:
        """Check that patches of a grid, h x w, can be hidden as asked.

        Raises:
            ConfigError: if not, with what to change.
        """
        h, w = grid
        self.num_keep(h * w)
        fits = self.mask_kind != "grid" or h % 2 == w % 2 == 0
        require(fits, "mask_kind grid", grid, "even numbers of patches along height and width")

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
