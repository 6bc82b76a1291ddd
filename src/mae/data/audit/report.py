"""Collect audit findings of a source: formats, sizes, statistics and broken images."""

from __future__ import annotations

import errno
import io
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mae.data.audit.channel_stats import ChannelSums
from mae.data.audit.duplicates import alike, digest_of, look_of, same
from mae.data.decoding.decode import BadImage, PixelKind, UnsupportedImage, decode
from mae.data.decoding.header import ImageHeader, asked_channels, pixel_dtype, read_header
from mae.data.sources.source import Source

_FLAT = 0.05  # fraction of the std of all pixels; an image below it is nearly constant
_GONE = (errno.ENOENT, errno.ELOOP)  # errors of a dangling or circular link


class Fault(NamedTuple):
    """An image that could not be used."""

    id: int
    name: str
    reason: str
    broken: bool
    """Whether the file itself is damaged, as opposed to a kind mismatch, a library or the disk."""

    @property
    def sort(self) -> str:
        """The type of fault: the reason without its details."""
        return self.reason.partition(" (")[0]


@dataclass(kw_only=True, slots=True)
class Findings:
    """Findings on the images audited so far.

    The lists of readable images are parallel: equal positions refer to the same image.
    """

    source: Source
    kind: PixelKind | None
    """Kind that a run decodes to; None if the images have no common kind."""
    sums: ChannelSums | None = None
    ids: list[int] = field(default_factory=list)
    sizes: list[tuple[int, int]] = field(default_factory=list)
    """Height and width after the EXIF orientation."""
    digests: list[bytes] = field(default_factory=list)
    looks: list[bytes] = field(default_factory=list)
    deviations: list[float] = field(default_factory=list)
    """Largest std over the channels of each image, in stored units."""
    formats: Counter[str] = field(default_factory=Counter)
    kinds: Counter[PixelKind] = field(default_factory=Counter)
    """Kinds as stored, before conversion."""
    left_out: Counter[str] = field(default_factory=Counter)
    """Content of files that is never read."""
    faults: list[Fault] = field(default_factory=list)
    warned: dict[int, str] = field(default_factory=dict)
    """Damage in the files of readable images, by id."""
    bytes: int = 0

    def __post_init__(self) -> None:
        if self.kind is not None:
            self.sums = ChannelSums(self.kind.channels)

    def look_at(self, index: int) -> NDArray[Any] | None:
        """Read and decode an image and record its properties.

        Returns:
            Its pixels H W C, as a run would decode them; None if it cannot be used.
        """
        try:
            data = self.source.read(index)
        except BadImage as error:
            cause = error.__cause__
            of_the_file = not isinstance(cause, OSError) or cause.errno in _GONE
            self._fault(index, error, broken=of_the_file)
            return None
        try:
            facts = _facts(data, asked_channels(self.kind))
            warnings: list[str] = []
            pixels = decode(data, kind=self.kind or facts.kind, warn=warnings.append)
        except BadImage as error:
            self._fault(index, error, broken=not isinstance(error, UnsupportedImage))
            return None
        H, W, C = pixels.shape
        sums = ChannelSums(C) if self.sums is None else self.sums
        self.ids.append(index)
        self.sizes.append((H, W))
        self.digests.append(digest_of(data))
        self.looks.append(look_of(pixels))
        self.deviations.append(float(sums.add(pixels).max()))
        self.formats[facts.format] += 1
        self.kinds[facts.kind] += 1
        if warnings:
            self.warned[index] = warnings[0]
        if facts.left_out:
            self.left_out[facts.left_out] += 1
        self.bytes += len(data) if isinstance(data, bytes) else data.nbytes
        return pixels

    def _fault(self, index: int, error: BadImage, *, broken: bool) -> None:
        self.faults.append(Fault(index, self.source.name(index), str(error), broken))

    def warnings(self) -> list[Fault]:
        """Return the readable images whose files are damaged."""
        name = self.source.name
        return [Fault(i, name(i), text, broken=False) for i, text in self.warned.items()]

    @property
    def names(self) -> list[str]:
        """Names of the readable images."""
        return [self.source.name(index) for index in self.ids]

    def nearly_constant(self) -> list[int]:
        """Return the positions of images whose std is at most 5 % of that of all pixels."""
        if self.sums is None or not self.ids:
            return []
        limit = _FLAT * max(self.sums.std)
        return [place for place, own in enumerate(self.deviations) if own <= limit]

    def copies(self) -> list[list[int]]:
        """Group the positions of byte-identical images."""
        return same(self.digests)

    def look_alikes(self) -> list[list[int]]:
        """Group the positions of images that look alike without being copies.

        Of each group of copies only the first is compared. Nearly constant images all look alike
        and are left out.
        """
        left_out = set(self.nearly_constant())
        left_out.update(place for group in self.copies() for place in group[1:])
        places = [place for place in range(len(self.ids)) if place not in left_out]
        return [[places[i] for i in group] for group in alike([self.looks[p] for p in places])]


def _facts(data: bytes | NDArray[Any], channels: int | None) -> ImageHeader:
    if isinstance(data, bytes):
        return read_header(io.BytesIO(data), channels=channels)
    pixels = np.atleast_3d(data)
    return ImageHeader("array", PixelKind(pixel_dtype(pixels.dtype), pixels.shape[2]))
