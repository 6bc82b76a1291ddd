"""Encode images to features: as an array, or to a file with resume."""

from __future__ import annotations

import hashlib
import io
import json
import os
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

from mae.atomic import fsync_folder, open_atomic, write_atomic, write_json_atomic
from mae.config.model import ModelConfig
from mae.config.serialize import to_dict
from mae.data.batching.batch import Bad
from mae.data.decoding.arrays import as_batch, as_image
from mae.data.decoding.header import pillow_faults
from mae.data.sources.open import Data, open_source
from mae.data.sources.source import ArraySource, FolderSource, Source, load_array
from mae.data.types import Log, Pixels
from mae.errors import ConfigError, DataError
from mae.evaluation.features import Array, encoder_features
from mae.evaluation.inputs import (
    DEFAULT,
    FeatureSettings,
    evaluation_batches,
    open_for_features,
    report_unreadable,
)
from mae.model.encoder import Encoder, Pool
from mae.progress import Progress
from mae.report.parquet import ENDING, require_pyarrow, write_features
from mae.runs.log import READ
from mae.runs.signals import RunLock
from mae.weights.given import Given

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
        given: what the weights do not say, see `Given`.

    Returns:
        n D float32, or n L D for "tokens". An unreadable image has no row; a warning names it.

    Raises:
        MaeError: for whatever the user must change, in one line.
    """
    log = partial(print, file=sys.stderr)
    settings = FeatureSettings(pool, batch, device, crop_pct, given)
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


class _Done(NamedTuple):
    """Progress of a job; a file beside this record holds the features so far, row by row."""

    work: str
    """Digest of everything that determines the features."""
    images: int = 0
    """Number of images processed, broken ones included."""
    size: int = 0
    """Bytes of features written."""
    bad: Sequence[Bad] = ()
    warned: Sequence[Bad] = ()
    """Images that were read although their files are damaged."""


def embed_to_file(
    weights: str | Path,
    data: str | Path,
    *,
    out: Path,
    settings: FeatureSettings = DEFAULT,
    quiet: bool = False,
) -> Embedded:
    """Write the features of every image to a file; a repeated call resumes a stopped one.

    Finished batches are kept in a hidden folder beside the file until the complete file appears
    by one rename. A repeated call reuses them if weights, images and settings are the same.

    Args:
        weights: whatever `load_encoder` takes.
        data: what `open_source` takes, and a .npy of one image H W (C).
        out: .npy to write, with the names of its rows in a .tsv beside it; or .parquet of both.
        settings: how features are computed.
        quiet: show no progress.

    Raises:
        ConfigError: if `out` exists, has another suffix, or cannot be written.
    """
    store = out.with_name(f".{out.name}.part")
    _require_target(out, store)
    with Progress(quiet=quiet) as progress:
        encoder = open_for_features(weights, settings, log=progress.note)
        source = _source_of(data, encoder.config, log=progress.note)
        try:
            store.mkdir(parents=True, exist_ok=True)
            with RunLock(store / "lock"):
                done = _finish(store, encoder, source, settings, progress)
                report_unreadable(len(source), done.bad, done.warned, log=progress.note)
                result = _publish(store, out, source, done)
                shutil.rmtree(store)
        except OSError as error:
            raise ConfigError(
                f"out: {out} cannot be written: {error.strerror}; free some space or choose "
                "another path, and run the command again to resume"
            ) from error
    return result


def _require_target(out: Path, store: Path) -> None:
    if out.suffix not in (".npy", ENDING):
        raise ConfigError(f"out: {out} ends in {out.suffix!r}, expected .npy or .parquet")
    if out.suffix == ENDING:
        require_pyarrow("out", instead=".npy")
    beside = [] if store.exists() or out.suffix == ENDING else [out.with_suffix(".tsv")]
    for path in [out, *beside]:
        if path.exists():
            raise ConfigError(f"out: {path} exists already; choose another, or remove it first")


def _finish(
    store: Path, encoder: Encoder, source: Source, settings: FeatureSettings, progress: Progress
) -> _Done:
    """Encode the remaining images; record each batch once it is on disk."""
    record, pool = store / "done.json", settings.pool
    done = _resumed(record, _digest(encoder, source, settings), log=progress.note)
    progress.start(len(source), at=done.images, label="image")
    rest = range(done.images, len(source))
    with (store / "features").open("ab") as file:
        file.truncate(done.size)  # drop what a crash left of an unrecorded batch
        for got in evaluation_batches(encoder, source, rest, batch=settings.batch):
            file.write(encoder_features(encoder, [got.images], pools=[pool])[pool].tobytes())
            file.flush()
            os.fsync(file.fileno())
            images = done.images + len(got.ids) + len(got.bad)
            found = [*done.bad, *got.bad], [*done.warned, *got.warned]
            done = _Done(done.work, images, file.tell(), *found)
            write_json_atomic(record, done._asdict())
            progress.update(images)
    return done


def _digest(encoder: Encoder, source: Source, settings: FeatureSettings) -> str:
    device = encoder.cls_token.device.type
    facts = to_dict(encoder.config), source.fingerprint(), settings.pool, settings.batch, device
    digest = hashlib.sha256(json.dumps(facts).encode())
    for name, tensor in encoder.state_dict().items():
        digest.update(name.encode() + tensor.cpu().numpy().tobytes())
    return digest.hexdigest()


def _resumed(record: Path, work: str, *, log: Log) -> _Done:
    """Return the progress of a stopped job with the same inputs, else none."""
    if not record.exists():
        return _Done(work)
    found = json.loads(record.read_bytes())
    if found["work"] != work:
        log("starting over: weights, images or settings differ from those of the last start")
        return _Done(work)
    log(f"resuming: {found['images']:,} images are done")
    found |= {name: [Bad(*each) for each in found[name]] for name in ("bad", "warned")}
    return _Done(**found)


def _publish(store: Path, out: Path, source: Source, done: _Done) -> Embedded:
    """Write the tables; rename the features to their final name once all are on disk."""
    ids = np.delete(np.arange(len(source)), [bad.id for bad in done.bad])
    features = np.memmap(store / "features", np.float32, "r").reshape(len(ids), -1)
    columns = {"name": [source.name(i) for i in ids.tolist()]}
    if source.labels is not None:
        columns["class"] = [source.class_names[label] for label in source.labels[ids]]
    names, whole = out, store / "whole"
    with open_atomic(whole) as file:
        if out.suffix == ENDING:
            write_features(file, columns, features)
        else:
            np.save(file, features)
    if out.suffix != ENDING:
        names = out.with_suffix(".tsv")
        _write_table(names, [tuple(columns), *zip(*columns.values(), strict=True)])
    if done.bad or done.warned:
        bad_rows = [(bad.name, bad.reason) for bad in done.bad]
        bad_rows += [(bad.name, f"{READ}{bad.reason}") for bad in done.warned]
        _write_table(out.with_suffix(".bad-files.tsv"), [("name", "reason"), *bad_rows])
    whole.replace(out)
    fsync_folder(out.parent)
    return Embedded(str(out), str(names), *features.shape, len(done.bad))


def _write_table(path: Path, rows: Sequence[Sequence[str]]) -> None:
    write_atomic(path, "".join("\t".join(row) + "\n" for row in rows).encode())
