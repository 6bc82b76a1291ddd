"""Mask noise, the only randomness of masking: one number a patch, of which the smallest stay."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mae.config.objective import ObjectiveConfig
from mae.data.sampling.draws import Stream, uniform


def mask_noise(
    ids: NDArray[np.int64],
    objective: ObjectiveConfig,
    *,
    grid: tuple[int, int],
    seed: int,
    epoch: int = 0,
) -> Tensor:
    """Draw the noise by which a model hides patches, keyed by (seed, epoch, sample id).

    Args:
        ids: B sample ids.
        objective: what the run hides.
        grid: patches along height and width, h and w.
        seed: key of the run.
        epoch: pass over the data; each has its own masks.

    Returns:
        B L float32 in [0, 1), L = h w.
    """
    return torch.from_numpy(uniform(seed, epoch, ids, stream=Stream.MASK, count=grid[0] * grid[1]))
