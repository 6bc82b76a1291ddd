"""Segment images with a trained segmenter, and score the classes of their pixels."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mae.config.segment import SegmentConfig
from mae.data.augment.crop import resized_crop
from mae.data.batching.batch import Bad, SourceReader, channels_first
from mae.data.decoding.header import kind_of
from mae.data.segmentation.crop import CropRule, decoded_pair, resized_size
from mae.data.segmentation.source import Mask, MaskSource
from mae.data.types import Log, Pixels, Size
from mae.evaluation.dense.segment_inference import Windows, segment_logits
from mae.evaluation.dense.segment_metrics import Confusion, confusion_of, segment_scores
from mae.evaluation.inputs import report_unreadable
from mae.model.dense.segmenter import Segmenter
from mae.parallel.processes import SINGLE_PROCESS, Communicator
from mae.planning.hardware import choose_device
from mae.progress import Progress
from mae.weights.given import Given
from mae.weights.load import open_segmenter
from mae.weights.read import read_weights

_AT_ONCE = 8  # classes whose logits are resized together: those of all may be gigabytes


class SegmentView(NamedTuple):
    """How a segmenter sees an image."""

    short_side: int | None = None
    """Short side that an image is resized to, in pixels; None: as it is."""
    windows: Windows | None = None
    """None: the image whole."""

    @classmethod
    def of(cls, config: SegmentConfig) -> SegmentView:
        """Return the view of a run."""
        size = config.model.image_size
        stride = config.stride or (max(1, size[0] // 2), max(1, size[1] // 2))
        return cls(
            config.short_side, Windows(size, stride) if config.inference == "slide" else None
        )

    @classmethod
    def of_facts(cls, facts: Mapping[str, Any]) -> SegmentView | None:
        """Return the view that is stored with weights, see `facts`; None if there is none."""
        view = facts.get("view")
        if view is None:
            return None
        windows = view["windows"] and Windows(*(tuple(each) for each in view["windows"]))
        return cls(view["short_side"], windows)

    def facts(self) -> dict[str, object]:
        """Return the view as JSON values."""
        windows = self.windows and [list(each) for each in self.windows]
        return {"short_side": self.short_side, "windows": windows}

    def text(self) -> str:
        """Return the view in words."""
        side = "at their own size" if self.short_side is None else f"short side {self.short_side}"
        if self.windows is None:
            return f"whole images, {side}"
        (h, w), (down, right) = self.windows
        return f"windows of {h} x {w} every {down} x {right} pixels, {side}"


class OpenedSegmenter(NamedTuple):
    """A segmenter on its device, in evaluation mode."""

    model: Segmenter
    view: SegmentView


def open_for_segmenting(
    weights: str | os.PathLike[str], *, device: str, given: Given, log: Log
) -> OpenedSegmenter:
    """Load a segmenter, and report what was assumed and how it sees images.

    Raises:
        WeightsError: for other weights.
    """
    where = choose_device(device)
    raw = read_weights(weights, **given)
    model, notes = open_segmenter(raw)
    for note in notes:
        log(note)
    view = SegmentView.of_facts(raw.metadata.facts)
    log(f"images: {(view or SegmentView()).text()}{'' if view else '; not in the weights'}")
    return OpenedSegmenter(model.to(where).eval(), view or SegmentView())


def segmented_mask(model: Segmenter, pixels: Pixels, view: SegmentView) -> Mask:
    """Return the class of each pixel of an image, at its own size.

    Args:
        model: on its device, in evaluation mode.
        pixels: H W C of the type that the model was trained on.
        view: size and windows.

    Returns:
        H W.
    """
    H, W, _ = pixels.shape
    size = resized_size((H, W), CropRule(view.short_side).factor((H, W)))
    resized = pixels if size == (H, W) else resized_crop(pixels, (0, 0, H, W), size=size)
    device = next(model.parameters()).device
    # Copied: Pillow's pixels cannot be written, which torch requires.
    image = model.encoder.normalize(channels_first(np.array(resized[None])).to(device))

    def network(window: Tensor) -> Tensor:
        return model(window).logits  # type: ignore[no-any-return]

    return best_classes(segment_logits(network, image, windows=view.windows), size=(H, W))


def best_classes(logits: Tensor, *, size: Size) -> Mask:
    """Resize logits 1 K h w and return the class of the largest at each pixel, H W.

    Of equal ones it is the first.
    """
    best = logits.new_full(size, -torch.inf)
    classes = torch.zeros(size, dtype=torch.uint8, device=logits.device)
    for first in range(0, logits.shape[1], _AT_ONCE):
        part = logits[:, first : first + _AT_ONCE]
        if part.shape[-2:] != size:
            part = F.interpolate(part, size=size, mode="bilinear")
        values, places = part[0].max(dim=0)
        better = values > best
        best = torch.where(better, values, best)
        classes = torch.where(better, (places + first).to(torch.uint8), classes)
    found: Mask = classes.cpu().numpy()
    return found


class ImageScore(NamedTuple):
    """Score of one image."""

    id: int
    name: str
    miou: float
    """Mean IoU over the classes that have pixels in it or are predicted."""


class Segmented(NamedTuple):
    """What a segmenter gives for images with masks."""

    confusion: Confusion
    images: tuple[ImageScore, ...]
    """In the order of the source."""
    unreadable: tuple[str, ...]

    def examples(self, *, worst: int, others: int) -> dict[str, list[ImageScore]]:
        """Return the images of the lowest scores, the lowest first, and some of the others."""
        order = sorted(self.images, key=lambda image: (image.miou, image.id))
        rest = order[worst:]
        places = np.linspace(0, len(rest) - 1, min(others, len(rest))).round().astype(int)
        return {"worst": order[:worst], "others": [rest[place] for place in places]}


def score_images(
    model: Segmenter,
    source: MaskSource,
    view: SegmentView,
    *,
    progress: Progress,
    ranks: Communicator = SINGLE_PROCESS,
) -> Segmented:
    """Segment images one by one, and compare them with their masks; each pixel counts once.

    Args:
        model: on its device, in evaluation mode.
        source: images and masks.
        view: how the model sees them.
        progress: shows the images of this process.
        ranks: the processes that divide the images; all of them return the sum.

    Raises:
        DataError: if no image can be read.
    """
    reader, process = SourceReader(source.pairs), ranks.process
    use = partial(decoded_pair, kind=kind_of(model.encoder.config))
    own = process.shard(range(len(source)))
    K, names = model.num_classes, source.mask_classes
    total, images = np.zeros((K, K), dtype=np.int64), list[ImageScore]()
    progress.start(len(own), label="image segmented")
    for done, index in enumerate(own, start=1):
        if (pair := reader.read(index, use)) is not None:
            pixels, mask = pair
            found = confusion_of(mask, segmented_mask(model, pixels, view), num_classes=K)
            total += found
            images.append(ImageScore(index, source.name(index), segment_scores(found, names).miou))
        progress.update(done)
    everyone = ranks.all_gather((total, images, reader.bad, reader.warned))
    totals, many, bad, warned = zip(*everyone, strict=True)
    unreadable = sorted(_joined(bad))
    report_unreadable(len(source), unreadable, sorted(_joined(warned)), log=progress.note)
    scores = tuple(sorted(image for part in many for image in part))
    return Segmented(sum(totals), scores, tuple(each.name for each in unreadable))


def _joined(parts: Sequence[Sequence[Bad]]) -> list[Bad]:
    return [each for part in parts for each in part]
