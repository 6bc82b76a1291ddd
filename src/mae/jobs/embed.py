"""Features of pictures: as an array, or as a file that a second start goes on with."""

from __future__ import annotations

import hashlib
import importlib
import io
import json
import os
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from mae.data.batch import Bad
from mae.data.header import pillow_faults
from mae.data.source import FolderSource, Source
from mae.errors import ConfigError, DataError
from mae.evaluate.features import encoder_features
from mae.fields import to_dict
from mae.jobs.features import (
    DEFAULT,
    FeatureSettings,
    Floats,
    Ints,
    chunks,
    open_for_features,
    prepared_for,
    unreadable,
)
from mae.jobs.inputs import Data, open_source
from mae.jobs.progress import Progress
from mae.model.encoder import Encoder, Pool
from mae.train.guard import RunLock
from mae.train.rundir import fsync_folder, write_atomic, write_json_atomic

Picture = str | Path | Image.Image | NDArray[Any]


def embed(
    weights: str | Path,
    pictures: Data | Picture | Sequence[Picture],
    *,
    pool: Pool = "mean",
    batch: int = 64,
    device: str = "auto",
    heads: int | None = None,
) -> Floats:
    """Give the features of pictures: whole, in the evaluation view, nothing drawn at random.

    Args:
        weights, heads: as for `load_encoder`.
        pictures: a folder (rows in the order of its sorted paths), a file, an array N H W (C), a
            `Source`, or a sequence of paths, Pillow pictures and arrays H W (C).
        pool: see `Encoder.encode`.
        batch: pictures encoded at a time.
        device: see `choose_device`.

    Returns:
        n D float32, or n L D for "tokens". A picture that cannot be read has no row; a warning
        names it.

    Raises:
        MaeError: for whatever the user must change, in one line.
    """
    source = _source_of(pictures)
    settings = FeatureSettings(pool, batch, device, heads)
    encoder = open_for_features(weights, settings, say=partial(print, file=sys.stderr))
    pieces = [_piece(encoder, source, ids, pool) for ids in chunks(len(source), batch)]
    bad = [picture for piece in pieces for picture in piece.bad]
    if len(bad) == len(source):
        raise DataError(f"pictures: none of {len(source)} can be read; {unreadable(bad)}")
    if bad:
        warnings.warn(unreadable(bad), stacklevel=2)
    return np.concatenate([piece.features for piece in pieces])


class _Piece(NamedTuple):
    """Features of a few pictures of a source; broken ones have no row."""

    features: Floats
    ids: Ints
    bad: tuple[Bad, ...]


def _piece(encoder: Encoder, source: Source, ids: Sequence[int], pool: Pool) -> _Piece:
    images, kept, bad = prepared_for(encoder, source, ids)
    return _Piece(encoder_features(encoder, [images], pools=[pool])[pool], kept.numpy(), bad)


class _Pictures:
    """Pictures handed over one by one, of any sizes, as a source."""

    labels = None
    class_names = ()

    def __init__(self, pictures: Sequence[Picture]) -> None:
        self._pictures = pictures

    def __len__(self) -> int:
        return len(self._pictures)

    def read(self, index: int) -> bytes | NDArray[Any]:
        picture = self._pictures[index]
        if isinstance(picture, str | Path):
            return FolderSource.of_files([picture]).read(0)
        if isinstance(picture, Image.Image):
            # Through a lossless file that knows every mode, so that a picture in memory becomes
            # exactly what the same picture in a file becomes.
            with pillow_faults(picture.mode), io.BytesIO() as file:
                ImageOps.exif_transpose(picture).save(file, "TIFF")
                return file.getvalue()
        return picture

    def name(self, index: int) -> str:
        picture = self._pictures[index]
        return str(picture) if isinstance(picture, str | Path) else f"picture {index}"

    def fingerprint(self) -> str:
        return f"{len(self)} pictures"


def _source_of(pictures: Data | Picture | Sequence[Picture]) -> Source:
    if isinstance(pictures, str | Path) and Path(pictures).is_file():
        return FolderSource.of_files([pictures])
    if isinstance(pictures, Image.Image):
        return _Pictures([pictures])
    if isinstance(pictures, list | tuple):
        if not pictures:
            raise DataError("pictures: got none, expected at least one")
        return _Pictures(pictures)
    return open_source(cast(Data, pictures))


class Embedded(NamedTuple):
    """A file of features."""

    features: str
    names: str
    """File of the names of the rows; of a .parquet the same file."""
    pictures: int
    """Rows."""
    width: int
    unreadable: int
    """Pictures left out, listed in a file beside the features."""

    def rows(self) -> list[tuple[str, str]]:
        """Give the lines of a table."""
        shape = f"{self.pictures:,} x {self.width:,} float32"
        left_out = [("unreadable", f"{self.unreadable:,}, left out")] if self.unreadable else []
        return [("features", f"{self.features}  {shape}"), ("names", self.names), *left_out]


def embed_to_file(
    weights: str | Path,
    data: str | Path,
    *,
    out: Path,
    settings: FeatureSettings = DEFAULT,
    quiet: bool = False,
) -> Embedded:
    """Write the features of every picture of a folder; a second start goes on where one stopped.

    Finished batches wait in a hidden folder beside the file, until it appears whole by one
    rename. A second start takes them over if weights, pictures and settings are the same.

    Args:
        weights: whatever `load_encoder` takes.
        data: a folder of pictures.
        out: file to make, .npy (names beside it in .tsv) or .parquet.
        settings: how features are computed.
        quiet: show no progress.

    Raises:
        ConfigError: if `out` exists, or is of a sort or at a place that cannot be written.
    """
    store = out.with_name(f".{out.name}.parts")
    _require_target(out, store)
    with ExitStack() as stack:
        progress = stack.enter_context(Progress(quiet=quiet))
        source = open_source(data)
        encoder = open_for_features(weights, settings, say=progress.note)
        stack.enter_context(_writing(out))
        store.mkdir(parents=True, exist_ok=True)
        stack.enter_context(RunLock(store / "lock"))
        _keep_same_work(store, _identity(encoder, source, settings), say=progress.note)
        parts = _finish_parts(store, encoder, source, settings, progress)
        ids = np.concatenate([_read_part(path).ids for path in parts])
        bad = [picture for path in parts for picture in _read_part(path).bad]
        if not len(ids):
            raise DataError(f"pictures: none of {len(source)} can be read; {unreadable(bad)}")
        if bad:
            progress.note(unreadable(bad))
            table = [("name", "reason"), *((picture.name, picture.reason) for picture in bad)]
            _write_table(out.with_suffix(".bad-files.tsv"), table)
        write = _write_parquet if out.suffix == ".parquet" else _write_npy
        width = write(out, _names(source, ids), parts, store)
        shutil.rmtree(store)
    names = out if out.suffix == ".parquet" else out.with_suffix(".tsv")
    return Embedded(str(out), str(names), len(ids), width, len(bad))


def _require_target(out: Path, store: Path) -> None:
    if out.suffix not in (".npy", ".parquet"):
        raise ConfigError(f"out: {out} ends in {out.suffix!r}, expected .npy or .parquet")
    if out.suffix == ".parquet" and find_spec("pyarrow") is None:
        raise ConfigError(
            f"out: {out} needs pyarrow: pip install 'mae-vision[parquet]', or write a .npy"
        )
    for path in [out] if store.exists() else [out, out.with_suffix(".tsv")]:
        if path.exists():
            raise ConfigError(f"out: {path} exists already; choose another, or remove it first")


@contextmanager
def _writing(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigError(
            f"out: {out} cannot be written: {error.strerror}; make room or choose another place, "
            "and start the same again"
        ) from error


def _identity(encoder: Encoder, source: Source, settings: FeatureSettings) -> dict[str, Any]:
    """Name what features are a function of."""
    digest = hashlib.sha256(json.dumps(to_dict(encoder.config)).encode())
    for name, tensor in encoder.state_dict().items():
        digest.update(name.encode() + tensor.cpu().numpy().tobytes())
    return {
        "weights": digest.hexdigest(),
        "pictures": source.fingerprint(),
        "pool": settings.pool,
        "batch": settings.batch,
        "device": encoder.cls_token.device.type,
    }


def _keep_same_work(store: Path, identity: dict[str, Any], *, say: Callable[[str], None]) -> None:
    record, parts = store / "work.json", list(store.glob("*.npz"))
    if record.exists() and json.loads(record.read_bytes()) == identity:
        say(f"going on: {len(parts)} finished batches are there")
        return
    if parts:
        say("beginning anew: weights, pictures or settings are not those of the last start")
    for path in parts:
        path.unlink()
    write_json_atomic(record, identity)


def _finish_parts(
    store: Path,
    encoder: Encoder,
    source: Source,
    settings: FeatureSettings,
    progress: Progress,
) -> list[Path]:
    """Encode what is not there yet; each part appears by one rename."""
    parts = {store / f"{ids.start:012}.npz": ids for ids in chunks(len(source), settings.batch)}
    done = sum(len(ids) for path, ids in parts.items() if path.exists())
    progress.start(len(source), at=done, label="picture")
    for path, ids in parts.items():
        if path.exists():
            continue
        piece, content = _piece(encoder, source, ids, settings.pool), io.BytesIO()
        bad = np.array(piece.bad, dtype=str).reshape(-1, len(Bad._fields))
        np.savez(content, features=piece.features, ids=piece.ids, bad=bad)
        write_atomic(path, content.getvalue())
        done += len(ids)
        progress.update(done)
    return list(parts)


def _read_part(path: Path) -> _Piece:
    with np.load(path) as part:
        bad = tuple(Bad(int(index), name, reason) for index, name, reason in part["bad"].tolist())
        return _Piece(part["features"], part["ids"], bad)


def _names(source: Source, ids: Ints) -> list[tuple[str, ...]]:
    """Give the table of the rows' names, and classes where there are any, under a header."""
    labels, class_names = source.labels, source.class_names
    if labels is None or not class_names:
        return [("name",), *((source.name(i),) for i in ids.tolist())]
    return [("name", "class"), *((source.name(i), class_names[labels[i]]) for i in ids.tolist())]


def _write_npy(out: Path, names: list[tuple[str, ...]], parts: list[Path], store: Path) -> int:
    width = _read_part(parts[0]).features.shape[1]
    shape, row = (len(names) - 1, width), 0
    matrix = np.lib.format.open_memmap(store / "matrix", "w+", dtype=np.float32, shape=shape)
    for features in (_read_part(path).features for path in parts):
        matrix[row : row + len(features)] = features
        row += len(features)
    matrix.flush()
    _write_table(out.with_suffix(".tsv"), names)
    _place(store / "matrix", out)
    return int(width)


def _write_parquet(out: Path, names: list[tuple[str, ...]], parts: list[Path], store: Path) -> int:
    pa, parquet = importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    width, row = _read_part(parts[0]).features.shape[1], 1
    kinds = [
        *((name, pa.string()) for name in names[0]),
        ("features", pa.list_(pa.float32(), width)),
    ]
    with parquet.ParquetWriter(store / "table", pa.schema(kinds)) as writer:
        for features in (_read_part(path).features for path in parts):
            columns = [
                list(column) for column in zip(*names[row : row + len(features)], strict=True)
            ]
            vectors = pa.FixedSizeListArray.from_arrays(pa.array(features.ravel()), width)
            if len(features):
                writer.write_table(pa.table([*columns, vectors], schema=pa.schema(kinds)))
            row += len(features)
    _place(store / "table", out)
    return int(width)


def _write_table(path: Path, rows: Sequence[Sequence[str]]) -> None:
    write_atomic(path, "".join("\t".join(row) + "\n" for row in rows).encode())


def _place(temporary: Path, path: Path) -> None:
    """Give a file its name once all of it is on the disk."""
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    temporary.replace(path)
    fsync_folder(path.parent)
