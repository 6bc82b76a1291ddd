"""Encode images to features: as an array, or to a file with resume."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple, Unpack

import numpy as np
import torch
from torch import Tensor

from mae.atomic import fsync_folder, open_atomic
from mae.data.batching.batch import Bad
from mae.data.sources.images import Images, open_images
from mae.data.sources.source import Source
from mae.data.types import Log
from mae.errors import ConfigError
from mae.evaluation.batch_store import (
    FINISHING,
    BatchStore,
    Work,
    computed,
    store_folder,
    write_tsv,
)
from mae.evaluation.features import Array, encoder_features
from mae.evaluation.inputs import (
    DEFAULT,
    FeatureSettings,
    Weights,
    evaluation_batches,
    open_for_features,
    report_unreadable,
    weights_name,
)
from mae.model.encoder import Encoder, Pool
from mae.parallel.processes import open_communicator
from mae.progress import Progress
from mae.report.parquet import ENDING, require_pyarrow, write_features
from mae.runs.signals import StopSignal
from mae.train.resolve import Precision
from mae.weights.given import Given


def embed(
    weights: Weights,
    images: Images,
    *,
    pool: Pool = "mean",
    batch: int = 64,
    device: str = "auto",
    crop_pct: float | None = None,
    precision: Precision = "float32",
    quiet: bool = False,
    **given: Unpack[Given],
) -> Array:
    """Compute the features of whole images in the evaluation view, without randomness.

    Args:
        weights: as for `load_encoder`; or a network in memory, which is not changed.
        images: what `--data` takes (a folder gives rows in the order of its sorted paths), one
            Pillow image, an array or .npy of H W, H W C, N H W or N H W C, a tensor of these or of
            C H W or N C H W, a `Source`, or a sequence of paths, Pillow images, arrays and
            tensors. An ambiguous array is an error that says what to give instead.
        pool: see `Encoder.encode`.
        batch: images encoded at a time.
        device: see `choose_device`.
        crop_pct: fraction of an image that is kept, see `ModelConfig`; none: as in the weights.
        precision: "float32", "bf16", or "auto": bf16 on a device that has it of its own.
        quiet: show no progress and no notes.
        given: what the weights do not say, see `Given`.

    Returns:
        n D float32, or n L D for "tokens". An unreadable image has no row; a warning names it.

    Raises:
        MaeError: for whatever the user must change, in one line.
    """
    settings = FeatureSettings(pool, batch, device, crop_pct, given, precision=precision)

    def compute(encoder: Encoder, stored: Tensor) -> tuple[Array, ...]:
        return (encoder_features(encoder, [stored], pools=[pool])[pool],)

    (found,) = _computed(weights, images, settings, compute, quiet=quiet)
    return found


def features(
    weights: Weights,
    images: Images,
    *,
    blocks: Sequence[int] = (-1,),
    image_size: tuple[int, int] | None = None,
    batch: int = 64,
    device: str = "auto",
    crop_pct: float | None = None,
    quiet: bool = False,
    **given: Unpack[Given],
) -> tuple[Array, ...]:
    """Compute maps of intermediate features of whole images, without randomness, in float32.

    Args:
        weights: as for `embed`.
        images: as for `embed`.
        blocks: numbers of blocks from 0; negative numbers count from the last.
        image_size: height and width that the evaluation view is resized to, multiples of the
            patch size; none: those of the weights.
        batch: images encoded at a time.
        device: see `choose_device`.
        crop_pct: fraction of an image that is kept, see `ModelConfig`; none: as in the weights.
        quiet: show no progress and no notes.
        given: what the weights do not say, see `Given`.

    Returns:
        For each block n D h w float32, before the encoder's last norm. An unreadable image has no
        row; a warning names it.

    Raises:
        MaeError: for whatever the user must change, in one line.
    """
    settings = FeatureSettings("tokens", batch, device, crop_pct, given)

    @torch.inference_mode()
    def compute(encoder: Encoder, stored: Tensor) -> tuple[Array, ...]:
        maps = encoder.intermediates(stored.to(encoder.cls_token.device), blocks=blocks)
        return tuple(each.cpu().numpy() for each in maps)

    return _computed(weights, images, settings, compute, size=image_size, quiet=quiet)


def _computed(
    weights: Weights,
    images: Images,
    settings: FeatureSettings,
    compute: Callable[[Encoder, Tensor], tuple[Array, ...]],
    *,
    size: tuple[int, int] | None = None,
    quiet: bool,
) -> tuple[Array, ...]:
    """Compute arrays of n rows each in batches, with progress; warn of unreadable images."""
    parts, bad, warned = list[tuple[Array, ...]](), list[Bad](), list[Bad]()
    with Progress(quiet=quiet) as progress:
        encoder = open_for_features(weights, settings, log=progress.note)
        source = open_images(images, encoder.config, log=progress.note)
        every = range(len(source))
        if shows := len(source) > settings.batch:
            progress.start(len(source), label="image")
        for got in evaluation_batches(encoder, source, every, batch=settings.batch, size=size):
            parts.append(compute(encoder, got.images))
            bad += got.bad
            warned += got.warned
            if shows:
                progress.update(sum(len(rows) for rows, *_ in parts) + len(bad))
    report_unreadable(len(source), bad, warned, log=partial(warnings.warn, stacklevel=4))
    return tuple(np.concatenate(arrays) for arrays in zip(*parts, strict=True))


class Embedded(NamedTuple):
    """A file of features."""

    features: str
    names: str
    """File with the name of each row: a .tsv, or the .parquet itself."""
    images: int
    """Rows."""
    width: int
    unreadable: int
    """Number of images left out; a file beside the features lists them."""


def embed_to_file(
    weights: Weights,
    data: str | Path,
    *,
    out: Path,
    settings: FeatureSettings = DEFAULT,
    command: Sequence[str] = (),
    quiet: bool = False,
) -> Embedded:
    """Write the features of every image to a file; a repeated call resumes a stopped one.

    Each finished batch is a file in a hidden folder beside `out`, until the complete file appears
    by one rename. A repeated call reuses them if weights, images and settings are the same, on
    any number of processes. Processes started by torchrun divide the batches; the file is
    bit-identical to that of one process.

    Args:
        weights: whatever `load_encoder` takes.
        data: what `open_source` takes, and a .npy of one image H W (C).
        out: .npy to write, with the names of its rows in a .tsv beside it; or .parquet of both.
        settings: how features are computed.
        command: the command that resumes the job, for the message of `Stopped`.
        quiet: show no progress.

    Raises:
        ConfigError: if `out` exists, has another suffix, or cannot be written.
        Stopped: after a stop signal to any process, at the end of a batch.
    """
    with (
        open_communicator() as ranks,
        Progress(quiet=quiet or not ranks.is_main_process) as progress,
        StopSignal(FINISHING, command=command) as stop,
    ):
        ranks.on_main(partial(_require_target, out))
        encoder = open_for_features(weights, settings.at(ranks.process), log=progress.note)
        source = open_images(data, encoder.config, log=progress.note)
        pool = settings.pool_of(encoder.config)

        def compute(images: Tensor) -> Array:
            return encoder_features(encoder, [images], pools=[pool])[pool]

        work = Work(weights_name(weights), encoder, encoder, source, settings, compute, what=pool)
        with computed(work, out, ranks=ranks, stop=stop, progress=progress) as store:
            if ranks.is_main_process:
                result = _publish(store, out, source, log=progress.note)
        return ranks.on_main(lambda: result)


def _require_target(out: Path) -> None:
    if out.suffix not in (".npy", ENDING):
        raise ConfigError(f"out: {out} ends in {out.suffix!r}, expected .npy or .parquet")
    if out.suffix == ENDING:
        require_pyarrow("out", instead=".npy")
    beside = [] if store_folder(out).exists() or out.suffix == ENDING else [out.with_suffix(".tsv")]
    for path in [out, *beside]:
        if path.exists():
            raise ConfigError(f"out: {path} exists already; choose another, or remove it first")


def _publish(store: BatchStore, out: Path, source: Source, *, log: Log) -> Embedded:
    """Write the tables; rename the features to their final name once all are on disk."""
    ids, bad = store.readable(out, log=log)
    columns = {"name": [source.name(i) for i in ids.tolist()]}
    if source.labels is not None:
        columns["class"] = [source.class_names[label] for label in source.labels[ids]]
    names, whole = out, store.folder.with_name("whole.npy")
    width = store.join(len(ids), whole)
    if out.suffix == ENDING:
        array, whole = np.load(whole, mmap_mode="r"), whole.with_suffix(ENDING)
        with open_atomic(whole) as file:
            write_features(file, columns, array)
    else:
        names = out.with_suffix(".tsv")
        write_tsv(names, [tuple(columns), *zip(*columns.values(), strict=True)])
    whole.replace(out)
    fsync_folder(out.parent)
    return Embedded(str(out), str(names), len(ids), width, len(bad))
