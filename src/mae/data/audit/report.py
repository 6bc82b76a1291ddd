"""Collect the properties of a source: formats, sizes, statistics, duplicates and broken images."""

from __future__ import annotations

import errno
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from numpy.typing import NDArray

from mae.data.audit.channel_stats import ChannelSums
from mae.data.audit.duplicates import digest_of, exact_duplicates, near_duplicates, perceptual_hash
from mae.data.decoding.decode import BadImage, PixelKind, UnsupportedImage, decode
from mae.data.decoding.header import asked_channels
from mae.data.sources.source import Source
from mae.data.survey import header_of

_FLAT = 0.05  # fraction of the std of all pixels; an image below it is nearly constant
# Errors of a damaged file, of a dangling and of a circular link; any other is one of the disk.
_OF_THE_FILE = (None, errno.ENOENT, errno.ELOOP)


class Fault(NamedTuple):
    """An image that could not be used, or was read with a warning."""

    id: int
    name: str
    reason: str
    broken: bool
    """Whether the file itself is damaged, as opposed to a kind mismatch, a library or the disk."""

    @property
    def kind(self) -> str:
        """The type of fault: the reason without its details."""
        return self.reason.partition(" (")[0]


@dataclass(kw_only=True, slots=True)
class DatasetReport:
    """Properties of the images added so far.

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
    hashes: list[bytes] = field(default_factory=list)
    """Perceptual hashes."""
    stds: list[float] = field(default_factory=list)
    """Largest std over the channels of each image, in stored units."""
    formats: Counter[str] = field(default_factory=Counter)
    kinds: Counter[PixelKind] = field(default_factory=Counter)
    """Kinds as stored, before conversion."""
    left_out: Counter[str] = field(default_factory=Counter)
    """Content of files that is never read."""
    faults: list[Fault] = field(default_factory=list)
    warnings: list[Fault] = field(default_factory=list)
    """Damage in the files of readable images."""
    bytes: int = 0

    def __post_init__(self) -> None:
        if self.kind is not None:
            self.sums = ChannelSums(self.kind.channels)

    def add(self, index: int) -> NDArray[Any] | None:
        """Read and decode an image and record its properties.

        Returns:
            Its pixels H W C, as a run would decode them; None if it cannot be used.
        """
        name, warnings = self.source.name(index), list[str]()
        try:
            data = self.source.read(index)
            header = header_of(data, channels=asked_channels(self.kind))
            pixels = decode(data, kind=self.kind or header.kind, warn=warnings.append)
        except BadImage as error:
            of_the_file = getattr(error.__cause__, "errno", None) in _OF_THE_FILE
            broken = of_the_file and not isinstance(error, UnsupportedImage)
            self.faults.append(Fault(index, name, str(error), broken))
            return None
        H, W, C = pixels.shape
        sums = ChannelSums(C) if self.sums is None else self.sums
        self.ids.append(index)
        self.sizes.append((H, W))
        self.digests.append(digest_of(data))
        self.hashes.append(perceptual_hash(pixels))
        self.stds.append(float(sums.add(pixels).max()))
        self.formats[header.format] += 1
        self.kinds[header.kind] += 1
        self.warnings += [Fault(index, name, text, broken=False) for text in warnings[:1]]
        if header.left_out:
            self.left_out[header.left_out] += 1
        self.bytes += len(data) if isinstance(data, bytes) else data.nbytes
        return pixels

    @property
    def names(self) -> list[str]:
        """Names of the readable images."""
        return [self.source.name(index) for index in self.ids]

    def nearly_constant(self) -> list[int]:
        """Return the positions of images whose std is at most 5 % of that of all pixels."""
        if self.sums is None or not self.ids:
            return []
        limit = _FLAT * max(self.sums.std)
        return [place for place, std in enumerate(self.stds) if std <= limit]

    def copies(self) -> list[list[int]]:
        """Group the positions of byte-identical images."""
        return exact_duplicates(self.digests)

    def look_alikes(self) -> list[list[int]]:
        """Group the positions of images that look alike without being copies.

        Of each group of copies only the first is compared. Nearly constant images all look alike
        and are left out.
        """
        left_out = set(self.nearly_constant())
        left_out.update(place for group in self.copies() for place in group[1:])
        places = [place for place in range(len(self.ids)) if place not in left_out]
        groups = near_duplicates([self.hashes[place] for place in places])
        return [[places[i] for i in group] for group in groups]
