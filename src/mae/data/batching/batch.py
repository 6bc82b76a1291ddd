"""Build training batches as a pure function of (source, seed, step)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from operator import itemgetter
from typing import NamedTuple, TypeVar, cast

import numpy as np
import torch
from torch import Tensor

from mae.config.run import AugmentConfig, ObjectiveConfig
from mae.data.augment.batched_crop import resized_crops
from mae.data.augment.crop import CROP_DRAWS, crop_boxes, evaluation_view
from mae.data.augment.decode_and_crop import random_crops
from mae.data.augment.randaugment import RandAugment, augmented
from mae.data.batching.targets import Targets, crops_with_targets
from mae.data.decoding.decode import BadImage, PixelKind, decode
from mae.data.decoding.header import pixel_dtype
from mae.data.detection.jitter import JitterRule
from mae.data.detection.source import BoxSource, Instances
from mae.data.sampling.draws import Stream, uniform
from mae.data.sampling.masks import mask_noise
from mae.data.sampling.order import shuffled
from mae.data.segmentation.crop import CropRule
from mae.data.segmentation.source import MaskSource
from mae.data.sources.pack import Form, PackSource
from mae.data.sources.source import ArraySource, Source
from mae.data.types import Draws, Flags, Integers, Pixels, Size
from mae.errors import DataError

T = TypeVar("T")

View = Callable[..., Pixels]
"""Makes the view h w C of an image H W C for evaluation, by `view(image, size=(h, w))`."""

_REPLACEMENTS = 100  # candidates tried in place of a broken image
_SMALL = 32  # pixels; larger images are cropped faster one by one (measured, 3 channels)


class Bad(NamedTuple):
    """An image that could not be read."""

    id: int
    name: str
    reason: str


@dataclass(frozen=True)
class SourceReader:
    """Reads images of a source and records the damage in their files."""

    source: Source
    bad: list[Bad] = field(default_factory=list)
    warned: list[Bad] = field(default_factory=list)
    """Images that were read although their file is damaged as the reason says."""
    on_read: Callable[[int], None] = lambda index: None
    """Called with each image before it is read."""

    def read(self, index: int, use: Callable[..., T]) -> T | None:
        """Return `use(stored image, warn=)`; None if the image cannot be read."""
        name = self.source.name
        self.on_read(index)

        def warn(text: str) -> None:
            self.warned.append(Bad(index, name(index), text))

        try:
            return use(self.source.read(index), warn=warn)
        except BadImage as error:
            self.bad.append(Bad(index, name(index), str(error)))
            return None


class Batch(NamedTuple):
    """The images of one step, before they move to the device."""

    images: Tensor
    """B C H W of the stored type."""
    noise: Tensor
    """B L float32 in [0, 1): the only randomness of masking."""
    ids: Tensor
    """B int64 sample ids, the keys of every draw."""
    labels: Tensor
    """B int64, of the images shown; -1 for none."""
    bad: tuple[Bad, ...] = ()
    """Images found broken while making this batch, which other images replace."""
    drops: Tensor | None = None
    """B 2*depth float32 in [0, 1): the only randomness of stochastic depth."""
    targets: Tensor | None = None
    """B classes float32: class probabilities, if labels are smoothed or mixed."""
    warned: tuple[Bad, ...] = ()
    """Images that were read, and what is wrong with their files."""
    masks: Tensor | None = None
    """B H W uint8: class of each pixel of the images shown, if they have masks."""
    objects: tuple[Instances, ...] | None = None
    """B: objects of the images shown, if they have boxes."""

    def split(self, size: int) -> Iterator[Batch]:
        """Cut into micro-batches of at most `size` images."""
        for start in range(0, len(self.ids), size):
            part = slice(start, start + size)
            objects = None if self.objects is None else self.objects[part]
            yield self.each(itemgetter(part))._replace(bad=(), warned=(), objects=objects)

    def to(self, device: torch.device) -> Batch:
        """Move to a device without blocking; the ids, which are keys, stay on the host."""
        return self.each(lambda t: t.to(device, non_blocking=True))._replace(ids=self.ids)

    def each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """Change every tensor."""
        return Batch(*(change(v) if isinstance(v, Tensor) else v for v in self))  # type: ignore[arg-type]


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchPlan:
    """Everything that a training batch depends on besides its step."""

    source: Source
    kind: PixelKind
    size: Size
    """Height and width of the crops."""
    augment: AugmentConfig
    batch: int
    seed: int
    grid: Size = (0, 0)
    """Patches along height and width; none where nothing is masked."""
    objective: ObjectiveConfig = ObjectiveConfig()
    """How patches are hidden."""
    num_drops: int = 0
    """Residual branches that stochastic depth may drop."""
    randaugment: RandAugment | None = None
    """Applied after crop and flip; not with several views."""
    views_per_decode: int = 1
    """V: views per image in a batch, which holds B / V images.

    V epochs run at once, in the order of the first: an image is decoded once and shown V times,
    cropped, mirrored and masked as in each of the V epochs. Together they hold the same views as
    without it, in another order and in as many steps.
    """
    share: tuple[int, int] = (0, 1)
    """Part of each batch that is made: (rank, number of ranks)."""
    held_out: tuple[int, ...] = ()
    """Ids of images that no batch shows, ascending and few."""
    mirrored: bool = False
    """Whether a share holds, with each image, its partner in the reversed batch (see Mixup)."""
    annotated: CropRule | JitterRule | None = None
    """How a `MaskSource` or a `BoxSource` is resized and cropped, in place of `augment`'s crops."""

    @property
    def batches_per_epoch(self) -> int:
        """Whole batches per epoch; the remainder is dropped, as published."""
        return self.num_shown // self.batch

    @property
    def num_shown(self) -> int:
        """Images of an epoch: all but those held out."""
        return len(self.source) - len(self.held_out)

    def shown_ids(self, places: Integers) -> Integers:
        """Map places among the images that are not held out to ids, both from 0."""
        if not self.held_out:
            return places
        below = np.array(self.held_out) - np.arange(len(self.held_out))  # places before each
        return places + np.searchsorted(below, places, side="right")

    @property
    def own_rows(self) -> Integers:
        """Places of this share's images among those of a batch, ascending.

        Shares differ by one image at most, or by two if mirrored: image i and image G-1-i of a
        batch of G are then in the same share, so that reversing it gives the same partners.
        """
        rank, ranks = self.share
        G = self.batch // self.views_per_decode
        if not self.mirrored:
            return np.array_split(np.arange(G), ranks)[rank]
        # From the middle out: rank 0, whose part is the longest, has the one without a partner.
        pairs = np.array_split(np.arange((G + 1) // 2)[::-1], ranks)[rank]
        return np.union1d(pairs, G - 1 - pairs)

    @property
    def own_batch(self) -> int:
        """Images of this share of a batch, counting each view."""
        return len(self.own_rows) * self.views_per_decode

    @property
    def batch_bytes(self) -> int:
        """Memory of the images of this share of a batch, in bytes."""
        pixel = np.dtype(self.kind.dtype).itemsize * self.kind.channels
        return self.own_batch * self.size[0] * self.size[1] * pixel

    def batch_ids(self, step: int) -> tuple[int, Integers]:
        """Return the (first) epoch of a step and the ids of all its images, each once."""
        views = self.views_per_decode
        passed, place = divmod(step, views * self.batches_per_epoch)
        count = self.batch // views
        positions = np.arange(place * count, (place + 1) * count, dtype=np.int64)
        epoch = passed * views
        places = shuffled(positions, n=self.num_shown, seed=self.seed, epoch=epoch)
        return epoch, self.shown_ids(places)

    def noise(self, ids: Integers, *, epoch: int) -> Tensor:
        """Draw the mask noise B L of images in an epoch."""
        return mask_noise(ids, self.objective, grid=self.grid, seed=self.seed, epoch=epoch)


def training_batch(
    plan: BatchPlan,
    step: int,
    *,
    room: Pixels | None = None,
    on_read: Callable[[int], None] = lambda index: None,
) -> Batch:
    """Make this share of the batch of a step.

    Order, crop, flip and mask noise all depend on the ids of its images only.

    Args:
        plan: everything else that the batch depends on.
        step: number of the batch.
        room: B h w C, the output buffer of the crops; None allocates one.
        on_read: called with the id of each image before it is read.
    """
    first, ids = plan.batch_ids(step)
    ids = ids[plan.own_rows]
    epochs = range(first, first + plan.views_per_decode)

    def draw(stream: Stream, count: int) -> Draws:
        draws = [uniform(plan.seed, epoch, ids, stream=stream, count=count) for epoch in epochs]
        return np.concatenate(draws)  # B count, view by view

    flips = draw(Stream.FLIP, 1)[:, 0] < plan.augment.flip
    crops = draw(Stream.CROP, CROP_DRAWS)
    reader, targets = SourceReader(plan.source, on_read=on_read), Targets()
    if plan.annotated is not None:
        reader = replace(reader, source=cast(MaskSource | BoxSource, plan.source).pairs)
        read = partial(_read_or_replace, plan, first, reader=reader)
        images, targets, shown = crops_with_targets(
            plan.annotated, read, ids, draw, flips, kind=plan.kind, size=plan.size, room=room
        )
    elif crops_as_batch(plan):
        images, shown = read_small_images(plan, first, ids, reader)
        images = crop_small_images(plan, images, crops, flips)
    else:
        images, shown = _read_crops(plan, first, ids, crops, flips, reader, room)
    if plan.randaugment is not None:
        images = augmented(images, plan.randaugment, ids, seed=plan.seed, epoch=first)
    if room is not None and images is not room:
        room[...] = images
        images = room
    labels = plan.source.labels
    shown_labels = np.full(len(ids), -1) if labels is None else labels[shown]
    return Batch(
        channels_first(images),
        torch.cat([plan.noise(ids, epoch=epoch) for epoch in epochs]),
        torch.from_numpy(np.tile(ids, len(epochs))),
        torch.from_numpy(np.tile(shown_labels, len(epochs))),
        tuple(reader.bad),
        torch.from_numpy(draw(Stream.DROP, plan.num_drops)) if plan.num_drops else None,
        warned=tuple(reader.warned),
        masks=None if targets.masks is None else torch.from_numpy(targets.masks),
        objects=targets.objects,
    )


def _read_crops(
    plan: BatchPlan,
    epoch: int,
    ids: Integers,
    draws: Draws,
    flips: Flags,
    reader: SourceReader,
    room: Pixels | None,
) -> tuple[Pixels, Integers]:
    """Read images one by one, so that only one decoded image is in memory.

    Returns:
        Crops B h w C, view by view, and for each id the id of the image shown, which gives the
        label.
    """
    shown = ids.copy()
    shape = len(draws), *plan.size, plan.kind.channels
    images = np.empty(shape, dtype=plan.kind.dtype) if room is None else room
    how = partial(random_crops, kind=plan.kind, size=plan.size, augment=plan.augment)
    for place, index in enumerate(ids.tolist()):
        views = slice(place, None, len(ids))
        cut = partial(how, draws=draws[views], flips=flips[views])
        crops, shown[place] = _read_or_replace(plan, epoch, index, cut, reader)
        for view, crop in enumerate(crops):
            images[place + view * len(ids)] = crop
    return images, shown


def crops_as_batch(plan: BatchPlan) -> bool:
    """Whether the images are stored as equal-size arrays that are cropped fastest as a batch."""
    match plan.source:
        case ArraySource(images=images):
            *_, H, W, C = images.shape
            edge, kind = max(H, W), PixelKind(pixel_dtype(images.dtype), C)
        case PackSource(form=Form(raw=int(edge), kind=PixelKind() as kind)):
            pass
        case _:
            return False
    small = edge <= _SMALL or plan.augment.crop_scale == (1, 1)
    return small and plan.kind == kind and kind.dtype == "uint8"


def read_small_images(
    plan: BatchPlan, epoch: int, ids: Integers, reader: SourceReader
) -> tuple[Pixels, Integers]:
    """Read the images of a batch for which `crops_as_batch` is true.

    Returns:
        Images B H W C and the ids B of those shown; broken images are replaced.
    """
    if isinstance(plan.source, ArraySource):
        return plan.source.images.astype(np.uint8, copy=False)[ids], ids
    keep = lambda pixels, warn: pixels  # noqa: E731
    read = [_read_or_replace(plan, epoch, index, keep, reader) for index in ids.tolist()]
    return np.stack([pixels for pixels, _ in read]), np.array([index for _, index in read])


def crop_small_images(plan: BatchPlan, images: Pixels, draws: Draws, flips: Flags) -> Pixels:
    """Crop small images as a batch: B H W C to B h w C, view by view."""
    H, W = images.shape[1:3]
    sides = np.full(len(draws), H), np.full(len(draws), W)
    boxes = crop_boxes(*sides, draws, plan.augment)
    if plan.views_per_decode > 1:
        images = np.tile(images, (plan.views_per_decode, 1, 1, 1))
    return resized_crops(images, boxes, size=plan.size, flips=flips)


def _read_or_replace(
    plan: BatchPlan, epoch: int, index: int, use: Callable[..., T], reader: SourceReader
) -> tuple[T, int]:
    """Read an image, or the first readable replacement drawn for (seed, epoch, id).

    Returns:
        What `use` makes of it, and the id of the image shown.
    """
    for candidate in _candidates(plan, epoch, index):
        if (found := reader.read(candidate, use)) is not None:
            return found, candidate
    last = reader.bad[-1].reason
    raise DataError(f"images: none of {_REPLACEMENTS + 1} in a row could be read; last: {last}")


def _candidates(plan: BatchPlan, epoch: int, index: int) -> Iterator[int]:
    yield index
    key = np.array([index])
    draws = uniform(plan.seed, epoch, key, stream=Stream.REPLACE, count=_REPLACEMENTS)
    yield from plan.shown_ids((draws[0] * plan.num_shown).astype(np.int64)).tolist()


class EvaluationBatch(NamedTuple):
    """Images in the deterministic evaluation view."""

    images: Tensor
    """B C H W of the stored type; broken images are left out, not replaced."""
    ids: Tensor
    """B int64: ids of these images in the source."""
    bad: tuple[Bad, ...]
    warned: tuple[Bad, ...] = ()
    """Images that were read, and what is wrong with their files."""


def evaluation_batch(
    source: Source, ids: Sequence[int], *, kind: PixelKind, size: Size, view: View = evaluation_view
) -> EvaluationBatch:
    """Read images for evaluation, without randomness.

    Args:
        source: the images.
        ids: of the images to read.
        kind: type and channels to deliver.
        size: height and width to deliver.
        view: makes the evaluation view of an image.
    """
    reader, use = SourceReader(source), partial(decode, kind=kind)
    read = [
        (index, view(image, size=size))
        for index in ids
        if (image := reader.read(index, use)) is not None
    ]
    empty = np.zeros((0, *size, kind.channels), dtype=kind.dtype)
    images = np.stack([image for _, image in read]) if read else empty
    ids_read = torch.tensor([index for index, _ in read], dtype=torch.int64)
    bad, warned = tuple(reader.bad), tuple(reader.warned)
    return EvaluationBatch(channels_first(images), ids_read, bad, warned)


def channels_first(images: Pixels) -> Tensor:
    """View B H W C memory as B C H W; the device makes the contiguous copy."""
    return torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2)
