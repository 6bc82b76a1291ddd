"""Encode images to features: as an array, or to a file with resume."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import sys
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple, Unpack

import numpy as np
from PIL import Image, ImageOps
from torch import Tensor

from mae.atomic import (
    fsync_folder,
    open_atomic,
    write_atomic,
)
from mae.config.model import ModelConfig
from mae.config.serialize import to_dict
from mae.data.batching.batch import Bad
from mae.data.decoding.arrays import as_batch, as_image
from mae.data.decoding.header import pillow_faults
from mae.data.sources.open import Data, open_source
from mae.data.sources.source import ArraySource, FolderSource, Source, load_array
from mae.data.types import Log, Pixels
from mae.errors import ConfigError, DataError
from mae.evaluation.feature_parts import FeatureParts, open_parts
from mae.evaluation.features import Array, encoder_features
from mae.evaluation.inputs import (
    DEFAULT,
    FeatureSettings,
    evaluation_batches,
    open_for_features,
    report_unreadable,
)
from mae.model.encoder import Encoder, Pool
from mae.parallel.processes import Communicator, open_communicator, require_agreement
from mae.planning.hardware import has_bf16
from mae.progress import Progress
from mae.report.parquet import ENDING, require_pyarrow, write_features
from mae.runs.log import READ
from mae.runs.signals import StopSignal
from mae.train.resolve import Precision, resolve_precision
from mae.weights.given import Given

FINISHING = "finishing this batch; the finished ones are kept"

_Readable = str | Path | Image.Image | Pixels
OneImage = _Readable | Tensor


def embed(
    weights: str | Path,
    images: Data | OneImage | Sequence[OneImage],
    *,
    pool: Pool = "mean",
    batch: int = 64,
    device: str = "auto",
    crop_pct: float | None = None,
    precision: Precision = "float32",
    **given: Unpack[Given],
) -> Array:
    """Compute the features of whole images in the evaluation view, without randomness.

    Args:
        weights: as for `load_encoder`.
        images: what `--data` takes (a folder gives rows in the order of its sorted paths), one
            Pillow image, an array or .npy of H W, H W C, N H W or N H W C, a tensor of these or of
            C H W or N C H W, a `Source`, or a sequence of paths, Pillow images, arrays and
            tensors. An ambiguous array is an error that says what to give instead.
        pool: see `Encoder.encode`.
        batch: images encoded at a time.
        device: see `choose_device`.
        crop_pct: fraction of an image that is kept, see `ModelConfig`; none: as in the weights.
        precision: "float32", "bf16", or "auto": bf16 on a device that has it of its own.
        given: what the weights do not say, see `Given`.

    Returns:
        n D float32, or n L D for "tokens". An unreadable image has no row; a warning names it.

    Raises:
        MaeError: for whatever the user must change, in one line.
    """
    log = partial(print, file=sys.stderr)
    settings = FeatureSettings(pool, batch, device, crop_pct, given, precision=precision)
    encoder = open_for_features(weights, settings, log=log)
    source = _source_of(images, encoder.config, log=log)
    features: list[Array] = []
    bad: list[Bad] = []
    warned: list[Bad] = []
    for got in evaluation_batches(encoder, source, range(len(source)), batch=batch):
        features.append(encoder_features(encoder, [got.images], pools=[pool])[pool])
        bad += got.bad
        warned += got.warned
    report_unreadable(len(source), bad, warned, log=partial(warnings.warn, stacklevel=3))
    return np.concatenate(features)


class _ImageList:
    """A sequence of images of any sizes as a source."""

    labels, class_names = None, ()

    def __init__(self, images: Sequence[_Readable]) -> None:
        self._images = images

    def __len__(self) -> int:
        return len(self._images)

    def read(self, index: int) -> bytes | Pixels:
        image = self._images[index]
        if isinstance(image, str | Path):
            return FolderSource.of_files([image]).read(0)
        if isinstance(image, Image.Image):
            # Encode to a lossless format that has every mode, so that an image in memory is
            # decoded exactly as the same image from a file.
            with pillow_faults(image.mode), io.BytesIO() as file:
                ImageOps.exif_transpose(image).save(file, "TIFF")
                return file.getvalue()
        return image

    def name(self, index: int) -> str:
        return f"image {index}"

    def fingerprint(self) -> str:
        return f"{len(self)} images"


def _source_of(
    images: Data | OneImage | Sequence[OneImage], config: ModelConfig, *, log: Log
) -> Source:
    """Open the images as a source; the network's channels decide the layout of an array."""
    if isinstance(images, str | Path):
        path = Path(images).expanduser()
        if path.suffix.lower() != ".npy" or not path.is_file():
            return open_source(images, log=log)
        try:
            return ArraySource(_convert(load_array(path), config, as_batch))
        except DataError as error:
            raise DataError(f"data: {path}: {error}") from error
    if isinstance(images, np.ndarray | Tensor):
        return ArraySource(_convert(images, config, as_batch))
    if isinstance(images, Image.Image):
        images = [images]
    if not isinstance(images, list | tuple):
        return open_source(images, log=log)  # type: ignore[arg-type]
    if all(isinstance(image, str | Path) for image in images):
        return FolderSource.of_files(images)
    return _ImageList([_readable(image, number, config) for number, image in enumerate(images)])


def _convert(images: Pixels | Tensor, model: ModelConfig, convert: Callable[..., Pixels]) -> Pixels:
    """Convert an array or a tensor to B H W C or H W C of a dtype that the network takes."""
    if is_tensor := isinstance(images, Tensor):
        images = images.detach().cpu()
        images = (images.float() if images.is_floating_point() else images).numpy()
    wanted = model.pixels.dtype
    if images.dtype.kind == "f" and wanted != "float32":
        raise DataError(
            f"images: got {images.dtype}, expected {wanted}, as the network was trained on; for "
            f"values from 0 to 1 give (images * {np.iinfo(wanted).max}).round() as {wanted}"
        )
    return convert(images, channels=model.channels, is_tensor=is_tensor)


def _readable(image: OneImage, number: int, config: ModelConfig) -> _Readable:
    """Return one of several images, an array or a tensor converted to H W C."""
    if isinstance(image, str | Path | Image.Image):
        return image
    if not isinstance(image, np.ndarray | Tensor):
        got = type(image).__name__
        raise DataError(f"image {number}: got {got}, expected a path, image, array or tensor")
    try:
        return _convert(image, config, as_image)
    except DataError as error:
        raise DataError(f"image {number}: {error}") from error


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
    weights: str | Path,
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
    store = out.with_name(f".{out.name}.part")
    with (
        open_communicator() as ranks,
        Progress(quiet=quiet or not ranks.is_main_process) as progress,
        StopSignal(FINISHING, command=command) as stop,
    ):
        ranks.on_main(partial(_require_target, out, store))
        encoder = open_for_features(weights, settings.at(ranks.process), log=progress.note)
        source = _source_of(data, encoder.config, log=progress.note)
        parts = FeatureParts(store / "batches", settings.batch, len(source))
        try:
            work = _digest(encoder, source, settings)
            facts = {"arguments": (str(weights), out, settings), "data": source.fingerprint}
            require_agreement(ranks, {**facts, "weights": lambda: work}, folder=store)
            with open_parts(parts, work, ranks=ranks, log=progress.note) as todo:
                _encode(parts, todo, encoder, source, settings.pool, ranks, stop, progress)
                if ranks.is_main_process:
                    result = _publish(parts, out, source, log=progress.note)
                    shutil.rmtree(store)
        except OSError as error:
            raise ConfigError(
                f"out: {out} cannot be written: {error.strerror}; free some space or choose "
                "another path, and run the command again to resume"
            ) from error
        return ranks.on_main(lambda: result)


def _require_target(out: Path, store: Path) -> None:
    if out.suffix not in (".npy", ENDING):
        raise ConfigError(f"out: {out} ends in {out.suffix!r}, expected .npy or .parquet")
    if out.suffix == ENDING:
        require_pyarrow("out", instead=".npy")
    beside = [] if store.exists() or out.suffix == ENDING else [out.with_suffix(".tsv")]
    for path in [out, *beside]:
        if path.exists():
            raise ConfigError(f"out: {path} exists already; choose another, or remove it first")


def _encode(
    parts: FeatureParts,
    todo: Sequence[int],
    encoder: Encoder,
    source: Source,
    pool: Pool,
    ranks: Communicator,
    stop: StopSignal,
    progress: Progress,
) -> None:
    """Encode the missing batches; the ranks meet after each, so that all stop at the same time."""
    left = sum(len(parts.ids(number)) for number in todo)
    progress.start(parts.images, at=parts.images - left, label="image")
    for start in range(0, len(todo), ranks.process.world_size):
        together = todo[start : start + ranks.process.world_size]
        for number in ranks.process.shard(together):
            ids = parts.ids(number)
            [got] = evaluation_batches(encoder, source, ids, batch=parts.batch)
            parts.write(number, encoder_features(encoder, [got.images], pools=[pool])[pool], got)
        left -= sum(len(parts.ids(number)) for number in together)
        progress.update(parts.images - left)
        if requested := max(ranks.all_gather(stop.requested or 0)):
            stop.requested = requested
            raise stop.stopped(f"stopped: {parts.images - left:,} images are done")


def _digest(encoder: Encoder, source: Source, settings: FeatureSettings) -> str:
    device = encoder.cls_token.device
    facts = [to_dict(encoder.config), source.fingerprint(), settings.pool, settings.batch]
    facts += [device.type, resolve_precision(settings.precision, has_bf16=has_bf16(device))]
    digest = hashlib.sha256(json.dumps(facts).encode())
    for name, tensor in encoder.state_dict().items():
        digest.update(name.encode() + tensor.cpu().numpy().tobytes())
    return digest.hexdigest()


def _publish(parts: FeatureParts, out: Path, source: Source, *, log: Log) -> Embedded:
    """Write the tables; rename the features to their final name once all are on disk."""
    bad, warned = parts.damaged()
    report_unreadable(len(source), bad, warned, log=log)
    ids = np.delete(np.arange(len(source)), [each.id for each in bad])
    columns = {"name": [source.name(i) for i in ids.tolist()]}
    if source.labels is not None:
        columns["class"] = [source.class_names[label] for label in source.labels[ids]]
    names, whole = out, parts.folder.with_name("whole.npy")
    width = parts.join(len(ids), whole)
    if out.suffix == ENDING:
        array, whole = np.load(whole, mmap_mode="r"), whole.with_suffix(ENDING)
        with open_atomic(whole) as file:
            write_features(file, columns, array)
    else:
        names = out.with_suffix(".tsv")
        _write_table(names, [tuple(columns), *zip(*columns.values(), strict=True)])
    if bad or warned:
        bad_rows = [(each.name, each.reason) for each in bad]
        bad_rows += [(each.name, f"{READ}{each.reason}") for each in warned]
        _write_table(out.with_suffix(".bad-files.tsv"), [("name", "reason"), *bad_rows])
    whole.replace(out)
    fsync_folder(out.parent)
    return Embedded(str(out), str(names), len(ids), width, len(bad))


def _write_table(path: Path, rows: Sequence[Sequence[str]]) -> None:
    write_atomic(path, "".join("\t".join(row) + "\n" for row in rows).encode())
