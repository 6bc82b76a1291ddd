"""Run a network over the images of a source: settings, evaluation batches, unreadable images."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mae.config.model import ModelConfig, published_crop_pct, refuse_without_effect
from mae.data.augment.crop import evaluation_view
from mae.data.batching.batch import Bad, EvaluationBatch, SourceReader, View, evaluation_batch
from mae.data.decoding.decode import decode
from mae.data.decoding.header import kind_of
from mae.data.sources.source import Source
from mae.data.types import Log, Pixels, Size
from mae.errors import ConfigError, DataError
from mae.evaluation.precision import set_precision
from mae.evaluation.split import Ids, Labels
from mae.model.autoencoder import MaskedAutoencoder
from mae.model.classifier import Classifier
from mae.model.encoder import Encoder, Pool
from mae.parallel.processes import SINGLE_PROCESS, Communicator, ProcessInfo
from mae.planning.hardware import choose_device, gpu_index
from mae.progress import Progress
from mae.train.resolve import Precision
from mae.weights.given import Given, HeadPool
from mae.weights.load import open_encoder

GRID_WIDTH = 384
"""Widest network whose features are pooled over a grid by default: nine times the width, and ahead
of the mean where images show objects (decision 0025)."""


class FeatureSettings(NamedTuple):
    """How features are computed."""

    pool: Pool | None = "mean"
    """See `Encoder.encode`; None: grid of a network up to `GRID_WIDTH`, mean of a wider one."""
    batch: int = 64
    """Images encoded at a time."""
    device: str = "auto"
    """See `choose_device`."""
    crop_pct: float | None = None
    """Fraction of an image to keep, see `ModelConfig`; none: that of the weights."""
    given: Given = {}
    """Settings that the weights file does not record."""
    head_pool: HeadPool | None = None
    """Pooling of a classifier's head, where its file does not record it."""
    precision: Precision = "float32"
    """Of the encoder, see `set_precision`."""

    def pool_of(self, model: ModelConfig) -> Pool:
        """Return the pool, which follows from the network where none is given."""
        return self.pool or ("grid" if model.width <= GRID_WIDTH else "mean")

    def checked_device(self) -> torch.device:
        """Validate the settings and return the device.

        Raises:
            ConfigError: for a batch below 1, or a device this machine does not have.
        """
        if self.batch < 1:
            raise ConfigError(f"batch: expected at least 1, got {self.batch}")
        return choose_device(self.device)

    def at(self, process: ProcessInfo) -> FeatureSettings:
        """Assign each of several processes on a machine its own GPU, unless one is named.

        Raises:
            ConfigError: where there are fewer GPUs than processes.
        """
        device, count = self.checked_device(), torch.cuda.device_count()
        if process.world_size == 1 or device.type != "cuda" or device.index is not None:
            return self
        if (index := gpu_index(process)) >= count:
            raise ConfigError(
                f"device: got process {process.local_rank + 1} on a machine of {count} GPUs, "
                f"expected one each; start at most {count} there, or use --device cpu"
            )
        return self._replace(device=f"cuda:{index}")


DEFAULT = FeatureSettings()
NetworkT = TypeVar("NetworkT", Encoder, MaskedAutoencoder, Classifier)


Network = Encoder | MaskedAutoencoder | Classifier
Weights = str | os.PathLike[str] | Network
"""What gives features: a path, as for `load_encoder`, a finished run, or a network in memory."""


def weights_name(weights: Weights) -> str:
    """Return the path of weights, or the type of a network in memory, for messages."""
    return type(weights).__name__ if isinstance(weights, nn.Module) else os.fspath(weights)


def for_inference(network: NetworkT, settings: FeatureSettings) -> NetworkT:
    """Return a network in memory as the settings ask, in evaluation mode; a copy if it changes.

    Raises:
        ConfigError: for settings of weights in a file.
    """
    refuse_without_effect("a network in memory", "weights in a file", **settings.given)
    device, crop_pct = settings.checked_device(), settings.crop_pct
    own = next(network.parameters()).device
    there = own.type == device.type and device.index in (None, own.index)
    same = there and not network.training and settings.precision == "float32"
    if same and crop_pct is None:
        return network
    network = copy.deepcopy(network).to(device).eval()
    for part in network.modules():
        if crop_pct is not None and isinstance(part, Encoder | MaskedAutoencoder):
            part.config = replace(part.config, crop_pct=crop_pct)
    return network


def open_for_features(weights: Weights, settings: FeatureSettings, *, log: Log) -> Encoder:
    """Load an encoder onto its device, and report what was loaded, ignored and assumed.

    Args:
        weights: of a network in memory, the encoder is used; it is not changed.
        settings: device, view and precision.
        log: called with each note.
    """
    device, notes = settings.checked_device(), list[str]()
    if isinstance(weights, nn.Module):
        encoder = for_inference(
            weights if isinstance(weights, Encoder) else weights.encoder, settings
        )
    else:
        encoder, notes = open_encoder(weights, crop_pct=settings.crop_pct, **settings.given)
    for note in notes:
        log(note)
    report_view(encoder.config, log=log)
    set_precision(encoder.to(device).eval(), settings.precision, log=log)
    return encoder


def report_view(model: ModelConfig, *, log: Log) -> None:
    """Report the assumed `crop_pct` where the weights do not record it."""
    if model.crop_pct is None:
        assumed = published_crop_pct(model.image_size)
        log(f"crop_pct: not in the weights; assumed {assumed:g}, as published (--crop-pct)")


def evaluation_batches(
    encoder: Encoder,
    source: Source,
    ids: Sequence[int],
    *,
    batch: int,
    view: View | None = None,
    size: Size | None = None,
    process: ProcessInfo = SINGLE_PROCESS.process,
) -> Iterator[EvaluationBatch]:
    """Read images in the format an encoder was trained on, in its evaluation view or another.

    They have its image size, or `size`. Several processes divide the work by whole batches: the
    features of an image may differ in the last bit with the size of its batch.
    """
    config = encoder.config
    kind = kind_of(config)
    view = view or partial(evaluation_view, crop_pct=config.crop_pct)
    for part in _own_batches(ids, batch=batch, process=process):
        yield evaluation_batch(source, part, kind=kind, size=size or config.image_size, view=view)


def _own_batches(
    ids: Sequence[int], *, batch: int, process: ProcessInfo
) -> Sequence[Sequence[int]]:
    return process.shard([ids[start : start + batch] for start in range(0, len(ids), batch)])


class LabelledBatch(NamedTuple):
    """A batch of images in the evaluation view."""

    ids: Ids
    """B."""
    labels: Labels
    """B; -1 for none."""
    images: Tensor
    """B C H W of the stored type."""


def map_images(
    function: Callable[[LabelledBatch], Sequence[NDArray[Any]]],
    encoder: Encoder,
    source: Source,
    ids: Ids,
    *,
    batch: int,
    progress: Progress,
    label: str,
    view: View | None = None,
    ranks: Communicator = SINGLE_PROCESS,
) -> list[NDArray[Any]]:
    """Apply a function to images, batch by batch; several processes divide the batches.

    Unreadable images are skipped and reported at the end; if all are unreadable, it is an error.

    Args:
        function: returns columns of B rows for a batch, the ids first.
        encoder: determines the format of the images, see `evaluation_batches`.
        source: the images, with or without labels.
        ids: of the images to read.
        batch: images read at a time.
        progress: shows the images of this process.
        label: name of an image in the progress display.
        view: see `evaluation_batches`.
        ranks: the processes; all of them return the rows of all images.

    Returns:
        The columns of all readable images, rows ascending by id.
    """
    process, bad, warned = ranks.process, list[Bad](), list[Bad]()
    rows: list[Sequence[NDArray[Any]]] = []
    done, every = 0, ids.tolist()
    where = f" in 1 of {process.world_size} processes" if process.world_size > 1 else ""
    own = sum(map(len, _own_batches(every, batch=batch, process=process)))
    progress.start(own, label=f"{label}{where}")
    for got in evaluation_batches(encoder, source, every, batch=batch, view=view, process=process):
        if len(got.ids):
            kept = got.ids.numpy()
            labels = np.full(len(kept), -1) if source.labels is None else source.labels[kept]
            rows.append(function(LabelledBatch(kept, labels, got.images)))
        bad += got.bad
        warned += got.warned
        done += len(got.ids) + len(got.bad)
        progress.update(done)
    everyone = ranks.all_gather((rows, bad, warned))
    rows, bad, warned = (sum(parts, []) for parts in zip(*everyone, strict=True))
    report_unreadable(len(ids), sorted(bad), sorted(warned), log=progress.note)
    return joined(rows)


def joined(parts: Sequence[Sequence[NDArray[Any]]]) -> list[NDArray[Any]]:
    """Concatenate the columns of batches or processes; rows ascending by the first column."""
    columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
    order = columns[0].argsort(kind="stable")
    return [column[order] for column in columns]


def decoded_images(
    reader: SourceReader, config: ModelConfig, *, progress: Progress
) -> Iterator[tuple[int, Pixels]]:
    """Yield position and pixels H W C of each readable image; report the others at the end.

    Args:
        reader: of the images; it records the unreadable ones.
        config: the network, which says what the images are decoded to.
        progress: shows the images.

    Raises:
        DataError: if none could be read.
    """
    count, use = len(reader.source), partial(decode, kind=kind_of(config))
    progress.start(count, label="image")
    for index in range(count):
        if (pixels := reader.read(index, use)) is not None:
            yield index, pixels
        progress.update(index + 1)
    report_unreadable(count, reader.bad, reader.warned, log=progress.note)


def report_unreadable(
    count: int, bad: Sequence[Bad], warned: Sequence[Bad] = (), *, log: Log
) -> None:
    """Report the unreadable images and those read with a warning, in one line each.

    The first three are named.

    Raises:
        DataError: if none could be read.
    """
    if warned:
        log(f"{len(warned)} read with a warning: {_named(warned)}")
    if bad:
        text = f"{len(bad)} unreadable, left out: {_named(bad)}"
        if len(bad) == count:
            raise DataError(f"images: none of {count} can be read; {text}")
        log(text)


def _named(found: Sequence[Bad]) -> str:
    named = "; ".join(f"{image.name}: {image.reason}" for image in found[:3])
    return named + (f" and {len(found) - 3} more" if len(found) > 3 else "")
