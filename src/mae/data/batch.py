"""Whole batches as a pure function of (source, seed, step)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mae.config import AugmentConfig
from mae.data.augment import CROP_DRAWS, center_crop_box, crop_boxes, resized_crop, resized_crops
from mae.data.decode import BadPicture, PixelKind, decode
from mae.data.order import shuffled
from mae.data.policy import Policy, augmented
from mae.data.randomness import Stream, uniform
from mae.data.source import ArraySource, Source
from mae.errors import DataError


class CentreBox(Protocol):
    """Chooses the part of a picture that is evaluated."""

    def __call__(
        self, height: int, width: int, *, size: tuple[int, int]
    ) -> tuple[int, int, int, int]:
        """Return top, left, height, width."""


_REPLACEMENTS = 100  # pictures tried in place of a broken one
_SMALL = 32  # pixels; larger pictures are cropped faster one by one (measured, 3 channels)


class Bad(NamedTuple):
    """A picture that could not be read."""

    id: int
    name: str
    reason: str


class Batch(NamedTuple):
    """The pictures of one step, before the device."""

    images: Tensor
    """B C H W of the stored type."""
    noise: Tensor
    """B L float32 in [0, 1): the only randomness of masking."""
    ids: Tensor
    """B int64 sample ids, the keys of every draw."""
    labels: Tensor
    """B int64, of the pictures shown; -1 where there is none."""
    bad: tuple[Bad, ...] = ()
    """Pictures found broken while making this batch; others stand in for them."""
    drops: Tensor | None = None
    """B 2*depth float32 in [0, 1): the only randomness of stochastic depth."""
    targets: Tensor | None = None
    """B classes float32: share of each class, where labels are smoothed or mixed."""

    def split(self, size: int) -> Iterator[Batch]:
        """Cut into micro-batches of at most `size` pictures."""
        for start in range(0, len(self.ids), size):
            yield self._each(itemgetter(slice(start, start + size)))._replace(bad=())

    def to(self, device: torch.device) -> Batch:
        """Move to a device without waiting for it."""
        return self._each(lambda t: t.to(device, non_blocking=True))

    def _each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        return Batch(*(change(v) if isinstance(v, Tensor) else v for v in self))  # type: ignore[arg-type]


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchPlan:
    """Everything a training batch depends on besides its number."""

    source: Source
    kind: PixelKind
    size: tuple[int, int]
    """Height and width of the crops."""
    num_patches: int
    augment: AugmentConfig
    batch: int
    seed: int
    num_drops: int = 0
    """Residual branches that stochastic depth may drop."""
    policy: Policy | None = None
    """RandAugment, after crop and flip."""

    @property
    def batches_per_epoch(self) -> int:
        """Whole batches of an epoch; the remainder falls off, as published."""
        return len(self.source) // self.batch

    def batch_ids(self, step: int) -> tuple[int, NDArray[np.int64]]:
        """Give the epoch of a step and the ids of its samples."""
        epoch, place = divmod(step, self.batches_per_epoch)
        positions = np.arange(place * self.batch, (place + 1) * self.batch, dtype=np.int64)
        return epoch, shuffled(positions, n=len(self.source), seed=self.seed, epoch=epoch)


def training_batch(plan: BatchPlan, step: int) -> Batch:
    """Make the batch of a step: order, crop, flip and mask noise all follow from its ids."""
    epoch, ids = plan.batch_ids(step)

    def draw(stream: Stream, count: int) -> NDArray[np.float32]:
        return uniform(plan.seed, epoch, ids, stream=stream, count=count)

    flips = draw(Stream.FLIP, 1)[:, 0] < plan.augment.flip
    crops = draw(Stream.CROP, CROP_DRAWS)
    stored = _small_pictures(plan)
    bad: list[Bad] = []
    if stored is None:
        read = [_read_or_replace(plan, epoch, int(index), bad) for index in ids]
        pictures, shown = [picture for picture, _ in read], np.array([index for _, index in read])
        boxes = _boxes(plan, [picture.shape[:2] for picture in pictures], crops)
        cuts = zip(pictures, boxes, strict=True)
        images = np.stack([resized_crop(picture, box, size=plan.size) for picture, box in cuts])
        images[flips] = images[flips, :, ::-1]
    else:
        boxes = _boxes(plan, [stored.shape[1:3]] * len(ids), crops)
        images, shown = resized_crops(stored[ids], boxes, size=plan.size, flips=flips), ids
    if plan.policy is not None:
        images = augmented(images, plan.policy, ids, seed=plan.seed, epoch=epoch)
    labels = plan.source.labels
    return Batch(
        _channels_first(images),
        torch.from_numpy(draw(Stream.MASK, plan.num_patches)),
        torch.from_numpy(ids),
        torch.from_numpy(np.full(len(ids), -1) if labels is None else labels[shown]),
        tuple(bad),
        torch.from_numpy(draw(Stream.DROP, plan.num_drops)) if plan.num_drops else None,
    )


def _boxes(
    plan: BatchPlan, sizes: Sequence[tuple[int, ...]], draws: NDArray[np.float32]
) -> NDArray[np.int64]:
    heights, widths = np.array(sizes).T
    scale, ratio = plan.augment.crop_scale, plan.augment.crop_ratio
    return crop_boxes(heights, widths, draws, scale=scale, ratio=ratio)


def _small_pictures(plan: BatchPlan) -> NDArray[np.uint8] | None:
    """Give the pictures in memory that are cropped fastest all at once, if there are such."""
    if not isinstance(plan.source, ArraySource):
        return None
    stored = plan.source.images
    as_wanted = stored.dtype == np.uint8 and plan.kind == ("uint8", stored.shape[3])
    small = max(stored.shape[1:3]) <= _SMALL or plan.augment.crop_scale == (1, 1)
    return stored.astype(np.uint8, copy=False) if as_wanted and small else None


def _read_or_replace(
    plan: BatchPlan, epoch: int, index: int, bad: list[Bad]
) -> tuple[NDArray[Any], int]:
    """Read a picture, or the first readable of those drawn for (seed, epoch, its id).

    Returns:
        Pixels and the id of the picture that is shown, whose class it is.
    """
    draws = uniform(
        plan.seed, epoch, np.array([index]), stream=Stream.REPLACE, count=_REPLACEMENTS
    )[0]
    for candidate in (index, *(draws * len(plan.source)).astype(np.int64).tolist()):
        try:
            return decode(plan.source.read(candidate), kind=plan.kind), candidate
        except BadPicture as error:
            bad.append(Bad(candidate, plan.source.name(candidate), str(error)))
    raise DataError(
        f"pictures: none of {_REPLACEMENTS + 1} in a row could be read; last: {bad[-1].reason}"
    )


class Prepared(NamedTuple):
    """Whole pictures in the deterministic evaluation view."""

    images: Tensor
    """B C H W of the stored type; broken pictures are left out, never replaced."""
    ids: Tensor
    """B int64: which of the source these are."""
    bad: tuple[Bad, ...]


def prepared(
    source: Source,
    ids: Sequence[int],
    *,
    kind: PixelKind,
    size: tuple[int, int],
    box: CentreBox = center_crop_box,
) -> Prepared:
    """Read pictures for evaluation: short side to 256/224 of the size, centre crop, no draw.

    Another `box` chooses another part.
    """
    images, kept, bad = [], [], []
    for index in ids:
        try:
            picture = decode(source.read(index), kind=kind)
        except BadPicture as error:
            bad.append(Bad(index, source.name(index), str(error)))
            continue
        part = box(*picture.shape[:2], size=size)
        images.append(resized_crop(picture, part, size=size))
        kept.append(index)
    empty = np.zeros((0, *size, kind.channels), dtype=kind.dtype)
    stacked = np.stack(images) if images else empty
    return Prepared(_channels_first(stacked), torch.tensor(kept, dtype=torch.int64), tuple(bad))


def _channels_first(images: NDArray[Any]) -> Tensor:
    """View B H W C memory as B C H W; the copy waits for the device."""
    return torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2)
