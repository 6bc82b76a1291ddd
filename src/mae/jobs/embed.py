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
from typing import Any, NamedTuple, Unpack

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from mae.atomic import fsync_folder, write_atomic, write_json_atomic
from mae.config.model import ModelConfig
from mae.config.serialize import to_dict
from mae.data.batching.batch import Bad
from mae.data.decoding.arrays import as_batch, as_image
from mae.data.decoding.header import pillow_faults
from mae.data.sources.open import Data, open_source
from mae.data.sources.source import ArraySource, FolderSource, Source, load_array
from mae.errors import ConfigError, DataError
from mae.evaluation.features import Array, encoder_features
from mae.evaluation.inputs import (
    DEFAULT,
    FeatureSettings,
    open_for_features,
    prepared_in_batches,
    tell_unreadable,
)
from mae.model.encoder import Encoder, Pool
from mae.progress import Progress
from mae.report.parquet import ENDING, require_pyarrow, write_features
from mae.runs.log import READ
from mae.runs.signals import RunLock
from mae.weights.given import Given

_Readable = str | Path | Image.Image | NDArray[Any]
Picture = _Readable | Tensor


def embed(
    weights: str | Path,
    pictures: Data | Picture | Sequence[Picture],
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
        pictures: what `--data` takes (a folder gives rows in the order of its sorted paths), one
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
    say = partial(print, file=sys.stderr)
    settings = FeatureSettings(pool, batch, device, crop_pct, given)
    encoder = open_for_features(weights, settings, say=say)
    source = _source_of(pictures, encoder.config, say=say)
    features: list[Array] = []
    bad: list[Bad] = []
    warned: list[Bad] = []
    for got in prepared_in_batches(encoder, source, range(len(source)), batch=batch):
        features.append(encoder_features(encoder, [got.images], pools=[pool])[pool])
        bad += got.bad
        warned += got.warned
    tell_unreadable(len(source), bad, warned, say=partial(warnings.warn, stacklevel=3))
    return np.concatenate(features)


class _Pictures:
    """A sequence of images of any sizes as a source."""

    labels, class_names = None, ()

    def __init__(self, pictures: Sequence[_Readable]) -> None:
        self._pictures = pictures

    def __len__(self) -> int:
        return len(self._pictures)

    def read(self, index: int) -> bytes | NDArray[Any]:
        picture = self._pictures[index]
        if isinstance(picture, str | Path):
            return FolderSource.of_files([picture]).read(0)
        if isinstance(picture, Image.Image):
            # Encode to a lossless format that has every mode, so that an image in memory is
            # decoded exactly as the same image from a file.
            with pillow_faults(picture.mode), io.BytesIO() as file:
                ImageOps.exif_transpose(picture).save(file, "TIFF")
                return file.getvalue()
        return picture

    def name(self, index: int) -> str:
        return f"picture {index}"

    def fingerprint(self) -> str:
        return f"{len(self)} pictures"


def _source_of(
    pictures: Data | Picture | Sequence[Picture],
    config: ModelConfig,
    *,
    say: Callable[[str], None],
) -> Source:
    """Open the images as a source; the network's channels decide the layout of an array."""
    if isinstance(pictures, str | Path):
        path = Path(pictures).expanduser()
        if path.suffix.lower() != ".npy" or not path.is_file():
            return open_source(pictures, log=say)
        try:
            return ArraySource(_batch(load_array(path), config))
        except DataError as error:
            raise DataError(f"data: {path}: {error}") from error
    if isinstance(pictures, np.ndarray | Tensor):
        return ArraySource(_batch(pictures, config))
    if isinstance(pictures, Image.Image):
        pictures = [pictures]
    if not isinstance(pictures, list | tuple):
        return open_source(pictures, log=say)  # type: ignore[arg-type]
    if all(isinstance(picture, str | Path) for picture in pictures):
        return FolderSource.of_files(pictures)
    return _Pictures([_one(picture, number, config) for number, picture in enumerate(pictures)])


def _array_of(pictures: NDArray[Any] | Tensor, config: ModelConfig) -> NDArray[Any]:
    """Convert an array or a tensor to an array of a dtype that the network takes."""
    if isinstance(pictures, Tensor):
        pictures = pictures.detach().cpu()
        pictures = (pictures.float() if pictures.is_floating_point() else pictures).numpy()
    wanted = config.pixels.dtype
    if pictures.dtype.kind == "f" and wanted != "float32":
        raise DataError(
            f"images: got {pictures.dtype}, expected {wanted}, as the network was trained on; for "
            f"values from 0 to 1 give (images * {np.iinfo(wanted).max}).round() as {wanted}"
        )
    return pictures


def _batch(pictures: NDArray[Any] | Tensor, config: ModelConfig) -> NDArray[Any]:
    """Convert an array or a tensor to B H W C."""
    array, is_tensor = _array_of(pictures, config), isinstance(pictures, Tensor)
    return as_batch(array, channels=config.channels, is_tensor=is_tensor)


def _one(picture: Picture, number: int, config: ModelConfig) -> _Readable:
    """Return one of several images, an array or a tensor converted to H W C."""
    if isinstance(picture, str | Path | Image.Image):
        return picture
    if not isinstance(picture, np.ndarray | Tensor):
        raise DataError(
            f"picture {number}: got {type(picture).__name__}, expected a path, a Pillow image, an "
            "array H W (C) or a tensor"
        )
    try:
        array, is_tensor = _array_of(picture, config), isinstance(picture, Tensor)
        return as_image(array, channels=config.channels, is_tensor=is_tensor)
    except DataError as error:
        raise DataError(f"picture {number}: {error}") from error


class Embedded(NamedTuple):
    """A file of features."""

    features: str
    names: str
    """File with the name of each row: a .tsv, or the .parquet itself."""
    pictures: int
    """Rows."""
    width: int
    unreadable: int
    """Number of images left out; a file beside the features lists them."""

    def rows(self) -> list[tuple[str, str]]:
        """Return the rows of a table."""
        shape = f"{self.pictures:,} x {self.width:,} float32"
        left_out = [("unreadable", f"{self.unreadable:,}, left out")] if self.unreadable else []
        names = [] if self.names == self.features else [("names", self.names)]
        return [("features", f"{self.features}  {shape}"), *names, *left_out]


class _Done(NamedTuple):
    """Progress of a job; a file beside this record holds the features so far, row by row."""

    work: str
    """Digest of everything that determines the features."""
    pictures: int = 0
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
        encoder = open_for_features(weights, settings, say=progress.note)
        source = _source_of(data, encoder.config, say=progress.note)
        try:
            store.mkdir(parents=True, exist_ok=True)
            with RunLock(store / "lock"):
                done = _finish(store, encoder, source, settings, progress)
                tell_unreadable(len(source), done.bad, done.warned, say=progress.note)
                result = _publish(store, out, source, done)
                shutil.rmtree(store)
        except OSError as error:
            raise ConfigError(
                f"out: {out} cannot be written: {error.strerror}; make room or choose another "
                "place, and start the same again"
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
    done = _taken_over(record, _work(encoder, source, settings), say=progress.note)
    progress.start(len(source), at=done.pictures, label="picture")
    rest = range(done.pictures, len(source))
    with (store / "features").open("ab") as file:
        file.truncate(done.size)  # drop what a crash left of an unrecorded batch
        for got in prepared_in_batches(encoder, source, rest, batch=settings.batch):
            file.write(encoder_features(encoder, [got.images], pools=[pool])[pool].tobytes())
            file.flush()
            os.fsync(file.fileno())
            seen = done.pictures + len(got.ids) + len(got.bad)
            found = [*done.bad, *got.bad], [*done.warned, *got.warned]
            done = _Done(done.work, seen, file.tell(), *found)
            write_json_atomic(record, done._asdict())
            progress.update(seen)
    return done


def _work(encoder: Encoder, source: Source, settings: FeatureSettings) -> str:
    device = encoder.cls_token.device.type
    facts = to_dict(encoder.config), source.fingerprint(), settings.pool, settings.batch, device
    digest = hashlib.sha256(json.dumps(facts).encode())
    for name, tensor in encoder.state_dict().items():
        digest.update(name.encode() + tensor.cpu().numpy().tobytes())
    return digest.hexdigest()


def _taken_over(record: Path, work: str, *, say: Callable[[str], None]) -> _Done:
    if not record.exists():
        return _Done(work)
    found = _Done(**json.loads(record.read_bytes()))
    if found.work != work:
        say("beginning anew: weights, pictures or settings are not those of the last start")
        return _Done(work)
    say(f"going on: {found.pictures:,} pictures are done")
    bad, warned = ([Bad(*one) for one in some] for some in (found.bad, found.warned))
    return found._replace(bad=bad, warned=warned)


def _publish(store: Path, out: Path, source: Source, done: _Done) -> Embedded:
    """Write the tables; rename the features to their final name once all are on disk."""
    ids = np.delete(np.arange(len(source)), [bad.id for bad in done.bad])
    features = np.memmap(store / "features", np.float32, "r").reshape(len(ids), -1)
    columns = {"name": [source.name(i) for i in ids.tolist()]}
    if source.labels is not None:
        columns["class"] = [source.class_names[label] for label in source.labels[ids]]
    alone = out.suffix == ENDING
    with (store / "whole").open("wb") as file:
        if alone:
            write_features(file, columns, features)
        else:
            np.save(file, features)
        file.flush()
        os.fsync(file.fileno())
    names = out if alone else out.with_suffix(".tsv")
    if not alone:
        _write_table(names, [tuple(columns), *zip(*columns.values(), strict=True)])
    if done.bad or done.warned:
        bad_rows = [(bad.name, bad.reason) for bad in done.bad]
        bad_rows += [(bad.name, f"{READ}{bad.reason}") for bad in done.warned]
        _write_table(out.with_suffix(".bad-files.tsv"), [("name", "reason"), *bad_rows])
    (store / "whole").replace(out)
    fsync_folder(out.parent)
    n, width = features.shape
    return Embedded(str(out), str(names), n, width, len(done.bad))


def _write_table(path: Path, rows: Sequence[Sequence[str]]) -> None:
    write_atomic(path, "".join("\t".join(row) + "\n" for row in rows).encode())
