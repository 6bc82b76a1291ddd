"""Random masking of patches from given noise."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Masking(NamedTuple):
    """The visible and hidden patches of each image."""

    ids_keep: Tensor
    """B K int64: the visible patches, in the order of the encoder's tokens."""
    ids_hidden: Tensor
    """B L-K int64: the hidden patches, in the order the decoder predicts them."""
    ids_restore: Tensor
    """B L int64: the index of each patch in (visible, hidden); the inverse permutation."""
    mask: Tensor
    """B L bool: True where hidden."""


def random_masking(noise: Tensor, *, num_keep: int) -> Masking:
    """Keep the `num_keep` patches with the smallest noise in each image.

    Args:
        noise: B L, any real numbers; of tied patches the first is kept.
        num_keep: visible patches K of each image.

    Source: He et al. 2021, section 3 ("Simple implementation": shuffle, keep the first part).
    """
    # A stable sort, so that all devices agree on ties.
    ids_shuffle = noise.argsort(dim=1, stable=True)  # B L
    ids_restore = ids_shuffle.argsort(dim=1)  # B L
    return Masking(
        ids_keep=ids_shuffle[:, :num_keep],
        ids_hidden=ids_shuffle[:, num_keep:],
        ids_restore=ids_restore,
        mask=ids_restore >= num_keep,
    )


def gather(tokens: Tensor, ids: Tensor) -> Tensor:
    """Select tokens by index: B T D and B K to B K D."""
    # Whole rows: `Tensor.gather` works value by value, which takes a CPU several times as long.
    B, T, D = tokens.shape
    rows = ids + T * torch.arange(B, device=ids.device).unsqueeze(1)
    return tokens.reshape(B * T, D).index_select(0, rows.flatten()).view(*ids.shape, D)
