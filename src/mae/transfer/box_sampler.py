"""Which boxes of an image the losses of a detector are computed of."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class BoxSampler:
    """Draws positive and negative boxes by a generator (torchvision: the global one).

    Source: Girshick 2015 (Fast R-CNN): at most a fraction of positive ones, the rest negative.
    """

    count: int
    positive: float
    generator: torch.Generator | None = None

    def __call__(self, matched: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Return masks of the chosen positive (>= 1) and negative (0) ones of each image."""
        chosen = list[Tensor](), list[Tensor]()
        for labels in matched:
            left = self.count
            for into, which, most in (
                (chosen[0], labels >= 1, int(self.count * self.positive)),
                (chosen[1], labels == 0, self.count),
            ):
                places = torch.where(which)[0]
                order = torch.randperm(len(places), generator=self.generator)
                kept = places[order[: min(most, left)].to(places.device)]
                into.append(torch.zeros_like(labels, dtype=torch.uint8))
                into[-1][kept] = 1
                left -= len(kept)
        return chosen


def drawing_by(generator: torch.Generator | None, part: Any) -> Any:
    """Return a copy of a part that draws by a generator, so that threads share the layers alone."""
    own = copy.copy(part)
    own.fg_bg_sampler = replace(part.fg_bg_sampler, generator=generator)
    return own
