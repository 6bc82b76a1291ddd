"""Boxes in a file for each image: YOLO .txt and Pascal VOC .xml."""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from mae.data.decoding.header import BadImage, printable
from mae.data.detection.source import Annotation, Drawn
from mae.data.types import Size

_ITEM = re.compile(r"""\s*(?:(\d+)\s*:\s*)?('[^']*'|"[^"]*"|[^,'"]+)""")


@dataclass(frozen=True)
class _Files:
    """Files of annotations in the order of their images; empty: an image without a file."""

    root: str
    files: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.files)

    def text(self, index: int) -> str:
        """Return the content of a file.

        Raises:
            BadImage: if it cannot be read.
        """
        try:
            return Path(self.root, self.files[index]).read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise BadImage(f"{self.files[index]} cannot be read ({error})") from error

    def fingerprint(self) -> str:
        """Hash names and contents."""
        digest = hashlib.sha256()
        for index, name in enumerate(self.files):
            try:
                text = self.text(index) if name else ""
            except BadImage:
                text = ""
            digest.update(f"{name}\0{text}\0".encode(errors="surrogateescape"))
        return digest.hexdigest()


class YoloFiles(_Files):
    """A line per object: class, centre x, centre y, width and height as fractions of the image.

    A line of class and at least three corners is a polygon.
    """

    def read(self, index: int, size: Size) -> Annotation:
        """Parse a file; see `Annotations`."""
        if not self.files[index]:
            return Annotation(())
        lines = self.text(index).splitlines()
        try:
            return Annotation(tuple(_yolo_object(line, size) for line in lines if line.strip()))
        except (ValueError, OverflowError) as error:
            raise BadImage(f"{self.files[index]}: {error}") from error


def _yolo_object(line: str, size: Size) -> Drawn:
    (H, W), (first, *rest) = size, line.split()
    values = [float(value) for value in rest]
    if len(values) == 4:
        x, y, w, h = values
        box = (x - w / 2) * W, (y - h / 2) * H, (x + w / 2) * W, (y + h / 2) * H
        return Drawn(int(first), box)
    if len(values) < 6 or len(values) % 2:
        raise ValueError(f"{len(values) + 1} numbers in a line, expected class and x y w h")
    xs, ys = [x * W for x in values[::2]], [y * H for y in values[1::2]]
    corners = [value for corner in zip(xs, ys, strict=True) for value in corner]
    return Drawn(int(first), (min(xs), min(ys), max(xs), max(ys)), [corners])


class VocFiles(_Files):
    """A file per image, with the pixels of each box counted from 1, the last one included."""

    def read(self, index: int, size: Size) -> Annotation:
        """Parse a file; see `Annotations`."""
        name = self.files[index]
        try:
            root = ElementTree.fromstring(self.text(index))
            objects = tuple(_voc_object(each) for each in root.iter("object"))
            height, width = (int(root.findtext(f"size/{n}", "0")) for n in ("height", "width"))
        except (ElementTree.ParseError, ValueError) as error:
            raise BadImage(f"{name} is no VOC annotation ({error})") from error
        return Annotation(objects, (height, width) if height and width else None)


def _voc_object(element: ElementTree.Element) -> Drawn:
    name = element.findtext("name", "").strip()
    corners = [element.findtext(f"bndbox/{n}") for n in ("xmin", "ymin", "xmax", "ymax")]
    if not name or None in corners:
        raise ValueError("an object without name or bndbox")
    x0, y0, x1, y1 = (float(value or "") for value in corners)
    return Drawn(printable(name), (x0 - 1, y0 - 1, x1, y1))


def yaml_names(text: str) -> dict[int | str, str] | None:
    """Return the entry `names` of a data.yaml: a list or mapping, in brackets or line by line.

    No other part of the file is read.
    """
    lines = iter(text.splitlines())
    first = next((line[6:] for line in lines if line.startswith("names:")), None)
    if first is None:
        return None
    block = [first]
    for line in lines:
        if line.strip() and line[0] not in " \t-#]}":
            break
        block.append(line)
    bare = [re.sub(r"(^|\s)#.*", "", line).strip() for line in block]
    if bare[0][:1] in ("[", "{"):
        inside = " ".join(bare)[1:]
        items = _ITEM.findall(inside[: min(inside.find(end) % (len(inside) + 1) for end in "]}")])
    else:
        found = (_ITEM.match(line.removeprefix("-").strip()) for line in bare if line)
        items = [each.groups() for each in found if each is not None]
    named = [(key, name.strip().strip("'\"")) for key, name in items if name.strip()]
    return {int(key) if key else place: printable(n) for place, (key, n) in enumerate(named)}


def stems(folder: Path, end: str) -> dict[str, str]:
    """Return the files below a folder that end in `end`, by their paths without it."""
    found = (os.path.relpath(path, folder) for path in folder.rglob(f"*{end}") if path.is_file())
    return {os.path.splitext(name)[0]: name for name in sorted(found)}
