"""Pack images into indexed shards; resume a stopped pack or add to a finished one."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice, pairwise
from pathlib import Path
from typing import NamedTuple, TypeVar

from mae.atomic import write_atomic
from mae.config.model import require
from mae.data.batching.batch import Bad
from mae.data.decoding.decode import BadImage
from mae.data.packing.merge import Classes, place_of
from mae.data.packing.reencode import as_file, central_square, shrunk
from mae.data.packing.writer import MOST_BYTES, SHARD_BYTES, Packing
from mae.data.sources.open import Data, open_source
from mae.data.sources.pack import INDEX, UNFINISHED, Form, PackSource, open_pack
from mae.data.sources.source import Source
from mae.data.survey import survey
from mae.errors import ConfigError, DataError
from mae.evaluation.inputs import report_unreadable
from mae.planning.hardware import use_threads
from mae.progress import Progress
from mae.runs.signals import RunLock

BAD_FILES = "bad-files.tsv"
_QUALITY = 90

T = TypeVar("T")
S = TypeVar("S")


class Packed(NamedTuple):
    """Contents of a pack."""

    pack: str
    images: int
    added: int
    """Of `images`, those added by this call and the stopped calls that it resumed."""
    unreadable: int
    """Number of images left out; bad-files.tsv lists them."""
    classes: int
    form: str
    bytes: int
    """Total size of the stored images."""
    shards: int


def asked_form(*, short_side: int | None, quality: int | None, raw: int | None) -> Form:
    """Build the storage form of the images from the options.

    Raises:
        ConfigError: for a number out of range, or options that exclude each other.
    """
    if quality is not None and short_side is None:
        raise ConfigError("quality: has no effect without --short-side; drop it, or give both")
    if raw is not None and short_side is not None:
        raise ConfigError("raw: excludes --short-side; give one of them")
    for name, edge in (("short-side", short_side), ("raw", raw)):
        require(edge is None or edge >= 1, name, edge, "at least 1 pixel")
    require(quality is None or 1 <= quality <= 100, "quality", quality, "1 to 100")
    if short_side is None:
        return Form(raw=raw)
    return Form(short_side=short_side, quality=_QUALITY if quality is None else quality)


def pack(
    data: Data,
    out: str | Path,
    *,
    form: Form = Form(),  # noqa: B008
    shard_bytes: int = SHARD_BYTES,
    quiet: bool = False,
) -> Packed:
    """Pack images, resume a stopped pack, or add to a finished one.

    Images already in the pack stay unchanged. A new index that includes the new images replaces
    the old one by a single rename; until then the pack is unchanged.

    Args:
        data: anything that `open_source` accepts.
        out: folder of the pack; created if missing.
        form: how the images are stored; see `asked_form`.
        shard_bytes: a shard is closed once it holds this many bytes.
        quiet: show no progress.

    Raises:
        MaeError: for whatever the user must change, in one line; also for an image already in
            the pack with other bytes or another class.
    """
    root = Path(out).expanduser()
    with Progress(quiet=quiet) as progress:
        source = open_source(data, log=progress.note)
        _require_folder(root)
        try:
            root.mkdir(parents=True, exist_ok=True)
            with RunLock(root / "lock"), use_threads(1):
                return _pack(source, root, form, shard_bytes, progress)
        except OSError as error:
            todo = "free space or choose another folder, and run the same command again"
            raise ConfigError(f"{root}: cannot be written: {error.strerror}; {todo}") from error


def _require_folder(root: Path) -> None:
    if root.exists() and not root.is_dir():
        raise ConfigError(f"{root}: is a file, expected a folder to make; choose another")
    names = {*os.listdir(root)} if root.exists() else set()
    if names - {"lock"} and not names & {INDEX, UNFINISHED}:
        first = sorted(names)[0]
        raise ConfigError(f"{root}: is not empty and not a pack: holds {first}; choose another")


def _pack(source: Source, root: Path, form: Form, shard_bytes: int, progress: Progress) -> Packed:
    old = open_pack(root) if (root / INDEX).exists() else None
    form = _with_kind(form, source, old)
    classes = _classes(source, old)
    names = _sorted_names(source)
    work = hashlib.sha256(
        json.dumps([source.fingerprint(), form, old.fingerprint() if old else ""]).encode()
    ).hexdigest()
    known = {} if old is None else _compare(names, source, old, progress)
    index = None if old is None else old.index
    with Packing(root, index, work=work, shard_bytes=shard_bytes) as packing:
        if packing.forgot:
            progress.note("starting over: the images changed since the last start")
        done = {*packing.names()}
        if done:
            progress.note(f"resuming: {len(done):,} images are packed")
        ids = [id for name, id in names if name not in done and id not in known]
        progress.start(len(names), at=len(names) - len(ids), label="image")
        bad = _add(packing, source, ids, form, progress)
        added = packing.done.rows
        if added:
            packing.publish(classes, form=form)
        else:
            packing.discard()
    report_unreadable(len(names), bad, log=progress.note)
    if bad:
        lines = [f"{image.name}\t{image.reason}\n" for image in bad]
        write_atomic(root / BAD_FILES, "".join(lines).encode())
    made = open_pack(root)
    return Packed(
        pack=str(root),
        images=len(made),
        added=added,
        unreadable=len(bad),
        classes=len(made.class_names),
        form=made.form.about(),
        bytes=int(made.index.arrays["lengths"].sum(dtype="u8")),
        shards=len(made.index.info.shards),
    )


def _with_kind(form: Form, source: Source, old: PackSource | None) -> Form:
    """Add the pixel kind to a raw form; require the form of the existing pack."""
    if old is None:
        return form if form.raw is None else form._replace(kind=survey(source))
    if form != old.form._replace(kind=None):
        have, asked = old.form.about(), form.about() if form.raw is None else f"raw {form.raw}"
        raise ConfigError(f"pack: its images are {have}, asked for {asked}; choose another folder")
    return old.form


def _classes(source: Source, old: PackSource | None) -> Classes:
    if old is not None and (old.labels is None) != (source.labels is None):
        have, not_these = ("has", "none") if source.labels is None else ("has no", "some")
        raise DataError(f"pack: it {have} classes and the new images have {not_these}; pack apart")
    return Classes.together(() if old is None else old.class_names, source.class_names)


def _sorted_names(source: Source) -> list[tuple[bytes, int]]:
    names = sorted((source.name(index).encode(), index) for index in range(len(source)))
    for (name, _), (following, _) in pairwise(names):
        if name == following:
            raise DataError(f"pack: two images are named {name.decode()}; rename one")
    return names


def _compare(
    names: Sequence[tuple[bytes, int]], source: Source, old: PackSource, progress: Progress
) -> dict[int, int]:
    """Find the images already in the pack, and require bytes and class to be the same.

    Returns:
        Position in the pack by image id.
    """
    known, place = dict[int, int](), 0
    for name, index in names:
        place = place_of(old.index, name, start=place)
        if place < len(old) and old.index.name(place) == name:
            known[index] = place
    if known:
        progress.note(f"comparing {len(known):,} images that are already in the pack")
        progress.start(len(known), label="image")
    arrays = old.index.arrays
    origins = arrays["origins"] if "origins" in arrays else arrays["sha256"]
    contents = in_threads(known, partial(_content, source, Form()))
    for number, (index, content) in enumerate(zip(known, contents, strict=True), start=1):
        place, label = known[index], source.name(index)
        # An image that cannot be read now was read when it was packed.
        if not isinstance(content, str) and content[1] != origins[place].tobytes():
            raise DataError(f"pack: {label} is there with other bytes; rename one, or pack anew")
        if source.labels is not None and old.labels is not None:
            now = source.class_names[source.labels[index]]
            before = old.class_names[old.labels[place]]
            if now != before:
                raise DataError(f"pack: {label} is there as {before}, not as {now}; correct it")
        progress.update(number)
    return known


def _add(
    packing: Packing, source: Source, ids: Sequence[int], form: Form, progress: Progress
) -> list[Bad]:
    """Pack images in order; return those that cannot be read."""
    bad: list[Bad] = []
    at, contents = packing.done.rows, in_threads(ids, partial(_content, source, form))
    for number, (index, content) in enumerate(zip(ids, contents, strict=True), start=1):
        name = source.name(index)
        if isinstance(content, str):
            bad.append(Bad(index, name, content))
        else:
            label = -1 if source.labels is None else int(source.labels[index])
            packing.add(name.encode(), content[0], label=label, origin=content[1])
        progress.update(at + number)
    packing.commit()
    return bad


def _content(source: Source, form: Form, index: int) -> tuple[bytes, bytes] | str:
    """Return the bytes to store and the digest of the original, or why there are none."""
    try:
        original = content = as_file(source.read(index))
        if form.short_side is not None and form.quality is not None:
            content = shrunk(original, short_side=form.short_side, quality=form.quality)
        if form.raw is not None and form.kind is not None:
            content = central_square(original, edge=form.raw, kind=form.kind)
    except BadImage as error:
        return str(error)
    if len(content) > MOST_BYTES:
        return f"too large ({len(content)} bytes, at most {MOST_BYTES})"
    return content, hashlib.sha256(original).digest()


def in_threads(items: Iterable[S], work: Callable[[S], T]) -> Iterator[T]:
    """Yield the result of each item in order, computed by one thread per core, at most 16.

    Only a few results are computed ahead, because images may be large.
    """
    threads, waiting = min(16, os.cpu_count() or 1), iter(items)
    with ThreadPoolExecutor(threads) as pool:
        while some := list(islice(waiting, 4 * threads)):
            yield from pool.map(work, some)
