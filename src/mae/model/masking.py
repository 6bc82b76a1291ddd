"""Which patches are seen: a function of noise that the caller gives."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Masking(NamedTuple):
    """Which patches of each image are seen and which are hidden."""

    ids_keep: Tensor
    """B K int64: the visible patches, in the order the encoder sees them."""
    ids_hidden: Tensor
    """B L-K int64: the hidden patches, in the order the decoder predicts them."""
    ids_restore: Tensor
    """B L int64: the place of each patch in (visible, hidden); the inverse permutation."""
    mask: Tensor
    """B L bool: True where hidden."""


def random_masking(noise: Tensor, *, num_keep: int) -> Masking:
    """Keep the `num_keep` patches of smallest noise in each image.

    Args:
        noise: B L, any real numbers; ties keep the patch that comes first.
        num_keep: visible patches K of each image.

    Source: paper, section 3 ("shuffle, then keep the first part of the list").
    """
    # A stable sort, so that processors of every kind agree on ties.
    ids_shuffle = noise.argsort(dim=1, stable=True)  # B L
    ids_restore = ids_shuffle.argsort(dim=1)  # B L
    return Masking(
        ids_keep=ids_shuffle[:, :num_keep],
        ids_hidden=ids_shuffle[:, num_keep:],
        ids_restore=ids_restore,
        mask=ids_restore >= num_keep,
    )


def gather(tokens: Tensor, ids: Tensor) -> Tensor:
    """Take the tokens named by `ids`: B T D and B K give B K D."""
    return tokens.gather(1, ids.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))
