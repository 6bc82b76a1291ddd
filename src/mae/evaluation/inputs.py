"""Image batches for embedding and probing: settings, evaluation view, unreadable images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mae.config.model import ModelConfig, published_crop_pct
from mae.data.augment.crop import evaluation_view
from mae.data.batching.batch import Bad, EvaluationBatch, View, evaluation_batch
from mae.data.decoding.header import kind_of
from mae.data.sources.source import Source
from mae.errors import ConfigError, DataError
from mae.model.encoder import Encoder, Pool
from mae.parallel.processes import SINGLE_PROCESS, Communicator, ProcessInfo
from mae.planning.hardware import choose_device
from mae.progress import Progress
from mae.weights.given import Given, HeadPool
from mae.weights.load import open_encoder

Ids = NDArray[np.int64]


class FeatureSettings(NamedTuple):
    """How features are computed."""

    pool: Pool = "mean"
    """See `Encoder.encode`."""
    batch: int = 64
    """Images encoded at a time."""
    device: str = "auto"
    """See `choose_device`."""
    crop_pct: float | None = None
    """Fraction of an image to keep, see `ModelConfig`; none: that of the weights."""
    given: Given | None = None
    """Facts that the weight file does not record."""
    head_pool: HeadPool | None = None
    """Pooling of a classifier's head, where its file does not record it."""

    def checked_device(self) -> torch.device:
        """Validate the settings and return the device.

        Raises:
            ConfigError: for a batch below 1, or a device this machine does not have.
        """
        if self.batch < 1:
            raise ConfigError(f"batch: expected at least 1, got {self.batch}")
        return choose_device(self.device)

    def at(self, place: ProcessInfo) -> FeatureSettings:
        """Assign each of several processes on a machine its own GPU, unless one is named.

        Raises:
            ConfigError: where there are fewer GPUs than processes.
        """
        if place.world_size == 1:
            return self
        device, count = self.checked_device(), torch.cuda.device_count()
        if device.type != "cuda" or device.index is not None:
            return self
        if place.local_rank >= count:
            raise ConfigError(
                f"device: got process {place.local_rank + 1} on a machine of {count} GPUs, "
                f"expected one each; start at most {count} there, or use --device cpu"
            )
        return self._replace(device=f"cuda:{place.local_rank}")


DEFAULT = FeatureSettings()


def open_for_features(
    weights: str | Path, settings: FeatureSettings, *, say: Callable[[str], None]
) -> Encoder:
    """Load an encoder onto its device, and report what was loaded, ignored and assumed."""
    device = settings.checked_device()
    given = settings.given or {}
    encoder, notes = open_encoder(weights, crop_pct=settings.crop_pct, **given)
    for note in notes:
        say(note)
    tell_view(encoder.config, say=say)
    return encoder.to(device).eval()


def tell_view(model: ModelConfig, *, say: Callable[[str], None]) -> None:
    """Report the assumed `crop_pct` where the weights do not record it."""
    if model.crop_pct is None:
        assumed = published_crop_pct(model.image_size)
        say(f"crop_pct: not said by the weights; assumed {assumed:g}, as published (--crop-pct)")


def prepared_in_batches(
    encoder: Encoder,
    source: Source,
    ids: Sequence[int],
    *,
    batch: int,
    view: View | None = None,
    place: ProcessInfo = SINGLE_PROCESS.process,
) -> Iterator[EvaluationBatch]:
    """Read images in the format an encoder was trained on, in its evaluation view or another.

    Several processes divide the work by whole batches: the features of an image may differ in
    the last bit with the size of its batch.
    """
    config = encoder.config
    kind = kind_of(config)
    view = view or partial(evaluation_view, crop_pct=config.crop_pct)
    for part in _own_batches(ids, batch=batch, place=place):
        yield evaluation_batch(source, part, kind=kind, size=config.image_size, view=view)


def _own_batches(ids: Sequence[int], *, batch: int, place: ProcessInfo) -> Sequence[Sequence[int]]:
    return place.shard([ids[start : start + batch] for start in range(0, len(ids), batch)])


class Looked(NamedTuple):
    """A batch of labelled images in the evaluation view."""

    images: Tensor
    """B C H W of the stored type."""
    labels: Ids
    """B."""
    ids: Ids
    """B."""


def labelled_in_batches(
    encoder: Encoder,
    source: Source,
    ids: Ids,
    *,
    batch: int,
    progress: Progress,
    label: str,
    view: View | None = None,
    ranks: Communicator = SINGLE_PROCESS,
) -> Iterator[Looked]:
    """Read labelled images as `prepared_in_batches` does, with a progress display.

    Unreadable images are skipped and reported at the end; if all are unreadable, it is an error.
    Each of several processes reads its part, and they synchronise at the end.
    """
    assert source.labels is not None
    bad: list[Bad] = []
    warned: list[Bad] = []
    done, place, every = 0, ranks.process, ids.tolist()
    shown = f" in 1 of {place.world_size} processes" if place.world_size > 1 else ""
    own = sum(map(len, _own_batches(every, batch=batch, place=place)))
    progress.start(own, label=f"{label}{shown}")
    for got in prepared_in_batches(encoder, source, every, batch=batch, view=view, place=place):
        if len(got.ids):
            kept = got.ids.numpy()
            yield Looked(got.images, source.labels[kept], kept)
        bad += got.bad
        warned += got.warned
        done += len(got.ids) + len(got.bad)
        progress.update(done)
    everyones = [
        sorted(sum(part, [])) for part in zip(*ranks.all_gather((bad, warned)), strict=True)
    ]
    tell_unreadable(len(ids), *everyones, say=progress.note)


def tell_unreadable(
    count: int, bad: Sequence[Bad], warned: Sequence[Bad] = (), *, say: Callable[[str], None]
) -> None:
    """Report the unreadable images and those read with a warning, in one line each.

    The first three are named.

    Raises:
        DataError: if none could be read.
    """
    if warned:
        say(f"{len(warned)} read with a warning: {_named(warned)}")
    if bad:
        text = f"{len(bad)} unreadable, left out: {_named(bad)}"
        if len(bad) == count:
            raise DataError(f"pictures: none of {count} can be read; {text}")
        say(text)


def _named(found: Sequence[Bad]) -> str:
    named = "; ".join(f"{picture.name}: {picture.reason}" for picture in found[:3])
    return named + (f" and {len(found) - 3} more" if len(found) > 3 else "")
