"""What is found in pictures that are looked at one by one: facts, sums, and why some are broken."""

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
from mae.data.decoding.decode import BadPicture, PixelKind, UnfitPicture, decode
from mae.data.decoding.header import Facts, asked_channels, pixel_dtype, read_facts
from mae.data.sources.source import Source

_FLAT = 0.05  # of the deviation of all pixels; a picture below it is nearly constant
_GONE = (errno.ENOENT, errno.ELOOP)  # what a link to nothing, or in a circle, says


class Fault(NamedTuple):
    """A picture that could not be used."""

    id: int
    name: str
    reason: str
    broken: bool
    """Whether the file itself is to blame: not the kind of the others, a library, or the disk."""

    @property
    def sort(self) -> str:
        """The reason without its particulars."""
        return self.reason.partition(" (")[0]


@dataclass(kw_only=True, slots=True)
class Findings:
    """What the pictures looked at so far are.

    Lists of the readable ones go together: place by place they speak of the same picture.
    """

    source: Source
    kind: PixelKind | None
    """What a run decodes to; None where the pictures have no kind in common."""
    sums: ChannelSums | None = None
    ids: list[int] = field(default_factory=list)
    sizes: list[tuple[int, int]] = field(default_factory=list)
    """Height and width, upright."""
    digests: list[bytes] = field(default_factory=list)
    looks: list[bytes] = field(default_factory=list)
    deviations: list[float] = field(default_factory=list)
    """Largest deviation of a channel, of the whole range or of all pixels' deviation."""
    formats: Counter[str] = field(default_factory=Counter)
    kinds: Counter[PixelKind] = field(default_factory=Counter)
    """As stored."""
    left_out: Counter[str] = field(default_factory=Counter)
    """What files hold and nobody reads."""
    faults: list[Fault] = field(default_factory=list)
    warned: dict[int, str] = field(default_factory=dict)
    """What is wrong with the files of readable ones, by id."""
    bytes: int = 0

    def __post_init__(self) -> None:
        if self.kind is not None:
            self.sums = ChannelSums(self.kind.channels)

    def look_at(self, index: int) -> NDArray[Any] | None:
        """Read and decode a picture and note what it is.

        Returns:
            Its pixels H W C, as a run would see them; None if it cannot be used.
        """
        try:
            data = self.source.read(index)
        except BadPicture as error:
            cause = error.__cause__
            of_the_file = not isinstance(cause, OSError) or cause.errno in _GONE
            self._fault(index, error, broken=of_the_file)
            return None
        try:
            facts = _facts(data, asked_channels(self.kind))
            warnings: list[str] = []
            pixels = decode(data, kind=self.kind or facts.kind, warn=warnings.append)
        except BadPicture as error:
            self._fault(index, error, broken=not isinstance(error, UnfitPicture))
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

    def _fault(self, index: int, error: BadPicture, *, broken: bool) -> None:
        self.faults.append(Fault(index, self.source.name(index), str(error), broken))

    def warnings(self) -> list[Fault]:
        """Give the readable images whose files are damaged."""
        name = self.source.name
        return [Fault(i, name(i), text, broken=False) for i, text in self.warned.items()]

    @property
    def names(self) -> list[str]:
        """Names of the readable ones."""
        return [self.source.name(index) for index in self.ids]

    def nearly_constant(self) -> list[int]:
        """Give the places of pictures that vary less than a twentieth of what all pixels do."""
        if self.sums is None or not self.ids:
            return []
        limit = _FLAT * max(self.sums.std)
        return [place for place, own in enumerate(self.deviations) if own <= limit]

    def copies(self) -> list[list[int]]:
        """Give the places of pictures of the same bytes, group by group."""
        return same(self.digests)

    def look_alikes(self) -> list[list[int]]:
        """Give the places of pictures that look alike without being copies, group by group.

        Of copies the first stands for all; nearly constant ones all look alike, and are left out.
        """
        left_out = set(self.nearly_constant())
        left_out.update(place for group in self.copies() for place in group[1:])
        places = [place for place in range(len(self.ids)) if place not in left_out]
        return [[places[i] for i in group] for group in alike([self.looks[p] for p in places])]


def _facts(data: bytes | NDArray[Any], channels: int | None) -> Facts:
    if isinstance(data, bytes):
        return read_facts(io.BytesIO(data), channels=channels)
    pixels = np.atleast_3d(data)
    return Facts("array", PixelKind(pixel_dtype(pixels.dtype), pixels.shape[2]))
