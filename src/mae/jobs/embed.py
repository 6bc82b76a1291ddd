"""Features of pictures: as an array, or as a file that a second start goes on with."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mae.config import to_dict
from mae.data.batch import Bad, prepared
from mae.data.decode import PixelKind, pillow_pixels
from mae.data.source import FolderSource, Source
from mae.errors import ConfigError, DataError, TrainingError
from mae.evaluate.features import encoder_features
from mae.jobs.inputs import Data, open_source
from mae.jobs.progress import Progress
from mae.jobs.setup import choose_device
from mae.model.encoder import Encoder, Pool
from mae.train.guard import RunLock
from mae.train.rundir import fsync_folder, write_durably, write_json_atomic
from mae.weights.load import open_encoder
from mae.weights.shapes import Told

Floats = NDArray[np.float32]
Given = str | Path | Image.Image | NDArray[Any]


class FeatureSettings(NamedTuple):
    """How features are computed."""

    pool: Pool = "mean"
    """See `Encoder.encode`."""
    batch: int = 64
    """Pictures encoded at a time."""
    device: str = "auto"
    """See `choose_device`."""
    told: Told = Told()
    """What weights that do not describe themselves leave open."""


class Piece(NamedTuple):
    """Features of a few pictures of a source."""

    features: Floats
    """n D, or n L D for the "tokens" pool; broken pictures have no row."""
    ids: NDArray[np.int64]
    """n."""
    bad: tuple[Bad, ...]


def embed(
    weights: str | Path,
    pictures: Data | Given | Sequence[Given],
    *,
    pool: Pool = "mean",
    batch: int = 64,
    device: str = "auto",
    heads: int | None = None,
    image_size: tuple[int, int] | None = None,
) -> Floats:
    """Give the features of pictures: whole, in the evaluation view, nothing drawn at random.

    Args:
        weights, heads, image_size: as for `load_encoder`.
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
    told = Told(heads=heads, image_size=image_size)
    settings = FeatureSettings(pool, batch, device, told)
    encoder = open_for_features(weights, settings, say=partial(print, file=sys.stderr))
    pieces = [piece_of(encoder, source, ids, pool=pool) for ids in _chunks(len(source), batch)]
    bad = [picture for piece in pieces for picture in piece.bad]
    if bad:
        warnings.warn(f"rows left out: {unreadable(bad)}", stacklevel=2)
    return np.concatenate([piece.features for piece in pieces])


def open_for_features(
    weights: str | Path, settings: FeatureSettings, *, say: Callable[[str], None]
) -> Encoder:
    """Load an encoder onto its device, ready to be asked."""
    if settings.batch < 1:
        raise ConfigError(f"batch: expected at least 1, got {settings.batch}")
    device = choose_device(settings.device)
    encoder, notes = open_encoder(weights, told=settings.told)
    for note in notes:
        say(note)
    return encoder.to(device).eval()


def kind_of(encoder: Encoder) -> PixelKind:
    """Give the pixels that an encoder was trained on."""
    return PixelKind(encoder.config.pixels.dtype, encoder.config.channels)


def piece_of(encoder: Encoder, source: Source, ids: Sequence[int], *, pool: Pool) -> Piece:
    """Encode some pictures of a source."""
    got = prepared(source, ids, kind=kind_of(encoder), size=encoder.config.image_size)
    features = encoder_features(encoder, [got.images], pools=[pool])[pool]
    return Piece(features, got.ids.numpy(), got.bad)


def unreadable(bad: Sequence[Bad]) -> str:
    """Say in one line which pictures could not be read, the first few by name."""
    named = "; ".join(f"{picture.name}: {picture.reason}" for picture in bad[:3])
    more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
    return f"{len(bad)} unreadable: {named}{more}"


class _Pictures:
    """A source of pictures handed over one by one, of any sizes."""

    labels = None
    class_names = ()

    def __init__(self, pictures: Sequence[Given]) -> None:
        self._pictures = pictures

    def __len__(self) -> int:
        return len(self._pictures)

    def read(self, index: int) -> bytes | NDArray[Any]:
        picture = self._pictures[index]
        if isinstance(picture, str | Path):
            return FolderSource.of_files([picture]).read(0)
        return pillow_pixels(picture) if isinstance(picture, Image.Image) else picture

    def name(self, index: int) -> str:
        picture = self._pictures[index]
        return str(picture) if isinstance(picture, str | Path) else f"picture {index}"

    def fingerprint(self) -> str:
        return f"{len(self)} pictures"


def _source_of(pictures: Data | Given | Sequence[Given]) -> Source:
    if isinstance(pictures, str | Path) and Path(pictures).is_file():
        return FolderSource.of_files([pictures])
    if isinstance(pictures, Image.Image):
        return _Pictures([pictures])
    if isinstance(pictures, list | tuple):
        if not pictures:
            raise DataError("pictures: got none, expected at least one")
        return _Pictures(pictures)
    return open_source(cast(Data, pictures))


def _chunks(count: int, size: int) -> Iterator[range]:
    for start in range(0, count, size):
        yield range(start, min(start + size, count))


class Embedded(NamedTuple):
    """A file of features."""

    path: str
    names: str
    """The names of the rows, beside it; of a .parquet the same file."""
    rows_written: int
    width: int
    bad: int
    """Pictures that could not be read, and have no row."""

    def rows(self) -> list[tuple[str, str]]:
        """Give the lines of a table."""
        return [
            ("features", f"{self.path}  {self.rows_written:,} x {self.width:,} float32"),
            ("names", self.names),
            *([("unreadable", f"{self.bad:,}, left out")] if self.bad else []),
        ]


def embed_to_file(
    weights: str | Path,
    data: str | Path,
    *,
    out: Path,
    settings: FeatureSettings = FeatureSettings(),
    quiet: bool = False,
) -> Embedded:
    """Write the features of every picture of a folder; a second start goes on where one stopped.

    Finished batches lie beside the file, in a hidden folder named after it, until it appears
    whole, by one rename. They are used again if weights, pictures and settings are the same.

    Raises:
        ConfigError: if the file exists, or is of a sort that cannot be written here.
        TrainingError: if the disk is full or may not be written to.
    """
    _check_target(out)
    store = out.with_name(f".{out.name}.parts")
    if out.exists():
        shutil.rmtree(store, ignore_errors=True)
        raise ConfigError(f"{out}: exists already; choose another --out, or remove it first")
    with Progress(quiet=quiet) as progress, _writing(out):
        store.mkdir(parents=True, exist_ok=True)
        with RunLock(store / "lock"):
            source = open_source(data)
            encoder = open_for_features(weights, settings, say=progress.note)
            _keep_same_work(store, _identity(encoder, source, settings), say=progress.note)
            parts = list(_parts(store, encoder, source, settings, progress))
            written = _assemble(out, parts, source)
        shutil.rmtree(store)
    bad = [picture for path in parts for picture in _read_part(path).bad]
    return written
