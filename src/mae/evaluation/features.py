"""Features for probes: pooled encoder tokens or raw pixels, standardized."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mae.config.model import ModelConfig
from mae.data.sources.source import ArraySource
from mae.evaluation.split import Ids, Labels
from mae.model.encoder import Encoder, Pool, pool_tokens

Array = NDArray[np.float32]
BATCH = 256
MOST_PIXEL_VALUES = 1024  # raw-pixel features per image: 32 x 32 in grey, 18 x 18 in colour


class LabelledImages(NamedTuple):
    """Labelled images in memory."""

    images: Tensor
    """n C H W of the stored type."""
    labels: Labels
    """n classes, from 0."""

    @classmethod
    def of(cls, source: ArraySource) -> LabelledImages:
        """Return all images of a labelled source in memory."""
        assert source.labels is not None
        images = torch.from_numpy(np.array(source.images)).permute(0, 3, 1, 2)
        return cls(images, source.labels)

    def only(self, ids: Ids) -> LabelledImages:
        """Select images by index, in this order."""
        return LabelledImages(self.images[torch.from_numpy(ids)], self.labels[ids])

    def batches(self) -> tuple[Tensor, ...]:
        """Split the images into batches."""
        return torch.split(self.images, BATCH)


@torch.inference_mode()
def encoder_features(
    encoder: Encoder, batches: Iterable[Tensor], *, pools: Sequence[Pool]
) -> dict[Pool, Array]:
    """Encode whole images once and pool the tokens in each of the given ways.

    Args:
        encoder: used in evaluation mode, on its own device; not changed.
        batches: B C H W images of the stored type, at least one batch.
        pools: see `Encoder.encode`.

    Returns:
        n F float32 for each pool, rows in the order of the images.
    """
    was_training, p = encoder.training, encoder.config.patch_size
    encoder.eval()
    parts: dict[Pool, list[Array]] = {pool: [] for pool in pools}
    for stored in batches:
        images = encoder.normalize(stored.to(encoder.cls_token.device))
        tokens = encoder(images).float()  # B 1+L D
        grid = (images.shape[-2] // p, images.shape[-1] // p)
        for pool in pools:
            parts[pool].append(pool_tokens(tokens, pool=pool, grid=grid).cpu().numpy())
    encoder.train(was_training)
    return {pool: np.concatenate(arrays) for pool, arrays in parts.items()}


def pixel_features(batches: Iterable[Tensor]) -> Array:
    """Flatten images B C H W into n C*H*W float32; integers are scaled to [0, 1]."""
    parts = []
    for images in batches:
        most = 1 if images.is_floating_point() else torch.iinfo(images.dtype).max
        parts.append((images.float() / most).flatten(1).cpu().numpy())
    return np.concatenate(parts)


def pixels_size(config: ModelConfig) -> tuple[int, int]:
    """Return the height and width to which images are reduced for their raw-pixel features."""
    (height, width), channels = config.image_size, config.channels
    factor = min(1.0, math.sqrt(MOST_PIXEL_VALUES / (channels * height * width)))
    return max(1, int(height * factor)), max(1, int(width * factor))


def standardized(train: Array, test: Array) -> tuple[Array, Array]:
    """Centre and scale each feature by its mean and std on the training part alone.

    Args:
        train: n F; mean and std are computed in float64. A constant feature becomes 0.
        test: m F.
    """
    mean = train.mean(axis=0, dtype=np.float64)
    std = train.std(axis=0, dtype=np.float64)
    # Rounding gives a constant feature an std of about 1e-7 of its magnitude.
    varies = std > 1e-6 * np.abs(mean)
    scale = np.divide(1.0, std, out=np.zeros_like(std), where=varies).astype(np.float32)
    centre = mean.astype(np.float32)
    return (train - centre) * scale, (test - centre) * scale
