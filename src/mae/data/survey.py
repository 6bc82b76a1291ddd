"""Survey a source for its pixel type, channels, mean and std."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from mae.data.decoding import header
from mae.data.decoding.decode import FULL_RANGE, decode, ignore_message
from mae.data.decoding.header import BadImage, ImageHeader, PagesKind, PixelKind
from mae.data.decoding.strips import VALUES
from mae.data.sources.source import FolderSource, Source
from mae.errors import DataError

T = TypeVar("T")


def survey(
    source: Source,
    *,
    channels: int | None = None,
    limit: int = 1000,
    max_bad: float = 0.1,
    log: Callable[[str], None] = ignore_message,
) -> PixelKind:
    """Choose the pixel kind of a run from the headers of its images.

    The majority decides between grey and colour (any colour image makes 3 channels) or another
    number of channels, and between integers (any 16-bit image makes uint16) and floats. Images of
    any other kind are left out, as unreadable ones are.

    Args:
        source: the images.
        channels: requested by the user, if at all; chosen if any image has this many. See
            `header.read_kind`.
        limit: maximum number of headers read, evenly spread over the source.
        max_bad: the largest fraction that may be left out.
        log: called with one line for the user that names what is left out.

    Raises:
        DataError: if no header can be read, or more than `max_bad` would be left out.
    """
    headers = _sampled(source, limit, partial(_header, source, channels=channels))
    kinds = {i: found.kind for i, found in headers.items()}
    colours = _most([_colour(kind.channels) for kind in kinds.values()], wanted=channels)
    fitting = {i: kind for i, kind in kinds.items() if _colour(kind.channels) == colours}
    floating = _most([kind.dtype == "float32" for kind in fitting.values()])
    if not floating:
        fitting = {i: kind for i, kind in fitting.items() if kind.dtype != "float32"}
    others = {i: kind for i, kind in kinds.items() if i not in fitting}
    if len(others) > max_bad * len(kinds):
        raise DataError(
            f"channels: images disagree: {_kinds_named(source, kinds)}; {len(others):,} would be "
            f"left out, more than {max_bad:.0%}; choose with --channels, or raise --max-bad"
        )
    if others:
        count = f"{len(others):,} of {len(kinds):,} images looked at"
        log(f"left out: {count} are of another kind: {_kinds_named(source, others)}")
    widest = max((kind.dtype for kind in fitting.values()), key=list(FULL_RANGE).index)
    pages = any(isinstance(kind, PagesKind) for kind in fitting.values())
    most = max(kind.channels for kind in fitting.values())
    return (PagesKind if pages else PixelKind)(widest, most)


def _colour(channels: int) -> int:
    """Map 1 channel to 3, since grey and colour images can be mixed; keep other counts."""
    return 3 if channels == 1 else channels


def _most(values: Sequence[int], *, wanted: int | None = None) -> int:
    """Return the wanted value if present, else the most frequent; ties go to the larger."""
    counts = Counter(values)
    if wanted is not None and _colour(wanted) in counts:
        return _colour(wanted)
    return max(counts, key=lambda value: (counts[value], value))


def _kinds_named(source: Source, kinds: Mapping[int, PixelKind]) -> str:
    """Describe how many images have each kind, naming the first few."""
    names: dict[PixelKind, list[str]] = {}
    for index, kind in kinds.items():
        names.setdefault(kind, []).append(source.name(index))
    most = sorted(names.items(), key=lambda pair: -len(pair[1]))
    return "; ".join(
        f"{len(some):,} of {kind.channels} x {kind.dtype} ({', '.join(some[:3])}"
        f"{', ...' if len(some) > 3 else ''})"
        for kind, some in most
    )


def side_and_channels(source: Source, *, limit: int = 200) -> tuple[int, int]:
    """Return the median of the shorter sides of the images in pixels, and the most channels.

    Args:
        source: the images; those of unreadable headers are skipped.
        limit: maximum number of headers read, evenly spread over the source.

    Raises:
        DataError: if no header can be read.
    """
    headers = _sampled(source, limit, partial(_header, source, channels=None)).values()
    side = int(np.median([min(found.size) for found in headers]))
    return side, max(found.kind.channels for found in headers)


def _header(source: Source, index: int, *, channels: int | None) -> ImageHeader:
    if isinstance(source, FolderSource):
        with source.open(index) as file:
            return header.read_header(file, channels=channels)
    return header_of(source.read(index), channels=channels)


def header_of(data: bytes | NDArray[Any], *, channels: int | None) -> ImageHeader:
    """Return the header of an encoded image, or of pixels H W or H W C.

    Raises:
        BadImage: if it is no image, too large, or of an unsupported type.
    """
    if isinstance(data, bytes):
        return header.read_header(io.BytesIO(data), channels=channels)
    pixels = np.atleast_3d(data)
    height, width, channels = pixels.shape
    kind = PixelKind(header.pixel_dtype(pixels.dtype), channels)
    return ImageHeader("array", kind, (height, width))


def measure_pixels(
    source: Source, *, kind: PixelKind, limit: int = 1000
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Measure mean and std of each channel, on the scale of `PixelConfig`.

    Every image has equal weight whatever its size, as in training; unreadable ones are skipped.

    Args:
        source: the images.
        kind: type and channels to decode to.
        limit: maximum number of images read, evenly spread over the source.

    Returns:
        Mean and std; the std of a constant channel is 1.
    Raises:
        DataError: if no image can be read.
    """

    def moments(index: int) -> NDArray[np.float64]:
        pixels = decode(source.read(index), kind=kind).reshape(-1, kind.channels)
        return np.stack([_mean(pixels, FULL_RANGE[kind.dtype], power) for power in (1, 2)])

    mean, square = np.mean(list(_sampled(source, limit, moments).values()), axis=0)
    std = np.sqrt(np.maximum(square - mean**2, 0))
    std[std < 1e-6 * np.maximum(1, np.abs(mean))] = 1
    return tuple(mean.tolist()), tuple(std.tolist())


def _mean(pixels: NDArray[Any], full: float, power: int) -> NDArray[np.float64]:
    """Return the mean power of each channel of n C values, bit-identical to numpy's mean.

    numpy's pairwise summation splits a sum the same way, at multiples of 8. Bit-identical
    results let runs resume that started when the whole array was summed at once, which needed
    many times its memory.
    """

    def total(channel: int, start: int, count: int) -> np.float64:
        if count > VALUES:
            half = count // 2 // 8 * 8
            rest = total(channel, start + half, count - half)
            return total(channel, start, half) + rest
        values = pixels[start : start + count, channel].astype(np.float64) / full
        return np.add.reduce(values if power == 1 else np.square(values))  # type: ignore[no-any-return]

    count, channels = pixels.shape
    return np.array([total(channel, 0, count) / count for channel in range(channels)])


def _sampled(source: Source, limit: int, look: Callable[[int], T]) -> dict[int, T]:
    """Apply `look` to evenly spread images and skip those that cannot be read."""
    count = min(len(source), limit)
    found: dict[int, T] = {}
    faults: list[str] = []
    for index in (place * len(source) // count for place in range(count)):
        try:
            found[index] = look(index)
        except BadImage as error:
            faults.append(f"{source.name(index)}: {error}")
    if not found:
        raise DataError(f"no readable image in {count}: {'; '.join(faults[:3])}; check the files")
    return found
