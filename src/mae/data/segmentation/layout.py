"""Find images and their masks in a folder, by names alone."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

from mae.data.decoding.header import printable
from mae.data.segmentation.coco import coco_images, read_coco
from mae.data.segmentation.source import FileMasks, Masks
from mae.data.sources.source import FolderSource, Source, text_of
from mae.data.sources.splits import Kind, split_kind
from mae.errors import DataError

IMAGES, MASKS = "images", ("masks", "annotations")
CLASSES = "classes.txt"
NO_CLASS = "-"
"""Line of classes.txt for a value that is ignored."""
EXPECTED = (
    "expected images/ and masks/ (PNG) with files of the same names, or images/ and a COCO .json, "
    "there or in train/ and val/"
)


class Problem(NamedTuple):
    """An image or mask that cannot be used."""

    kind: str
    """What is wrong, as the summary counts it."""
    name: str
    detail: str = ""


class MaskedPart(NamedTuple):
    """Images and masks of a split or of undivided data, not yet read."""

    name: str
    """Name of the split; empty where the data are undivided."""
    images: Source
    masks: Masks
    classes: tuple[str, ...] | None
    """Names of the values of the masks, `NO_CLASS` for an ignored one; None: not known."""
    problems: tuple[Problem, ...] = ()
    """Images without masks and masks without images, which are left out."""

    def shown(self, name: str) -> str:
        """Return the name of a file of this part for messages."""
        return f"{self.name}/{name}" if self.name else name


class MaskedLayout(NamedTuple):
    """Undivided data, or its splits, not yet opened."""

    where: str
    whole: Callable[[], MaskedPart] | None
    splits: Mapping[Kind, Callable[[], MaskedPart]]

    @property
    def test_kind(self) -> Kind:
        """The split to test on by default."""
        return "val" if "val" in self.splits else "test"


def find_masked(data: str | Path) -> MaskedLayout:
    """Find images with masks: one set of them, or splits.

    Args:
        data: a folder with `images/` and `masks/` (or `annotations/`) of same-named files, or with
            `images/` and a COCO file; the splits are folders of that kind, folders in `images/`
            and `masks/`, or COCO files named by them.

    Raises:
        DataError: if there are none.
    """
    root = Path(data).expanduser()
    if not root.is_dir():
        raise DataError(f"data: no folder {root.absolute()}; {EXPECTED}")
    folders = {entry.name for entry in os.scandir(root) if entry.is_dir()}
    found = dict[Kind, Callable[[], MaskedPart]]()
    for name in sorted(folders, key=lambda name: (len(name), name)):
        if (kind := split_kind(name)) and (one := _one_of(root / name, name, root)) is not None:
            found.setdefault(kind, one)
    found = found or _splits_inside(root) or _coco_splits(root)
    if found:
        return MaskedLayout(str(root), None, found)
    if (whole := _one_of(root, "", root)) is None:
        names = ", ".join(sorted(folders)[:5]) or "no folders"
        raise DataError(f"data: {root} has {names}; {EXPECTED}")
    return MaskedLayout(str(root), whole, {})


def _one_of(folder: Path, name: str, root: Path) -> Callable[[], MaskedPart] | None:
    """Return what opens the images and masks of a folder, if it holds both."""
    images = folder / IMAGES
    if not images.is_dir():
        return None
    for masks in MASKS:
        if (folder / masks).is_dir() and not [*(folder / masks).glob("*.json")]:
            return partial(_of_folders, name, images, folder / masks, (folder, root))
    files = [*folder.glob("*.json"), *(folder / MASKS[1]).glob("*.json")]
    if len(files) > 1:
        raise DataError(
            f"data: {folder} has {len(files)} .json files, {files[0].name} and {files[1].name} "
            "among them; keep one, or name them by their splits (train.json, val.json)"
        )
    return partial(_of_coco, name, files[0], (images, folder)) if files else None


def _splits_inside(root: Path) -> dict[Kind, Callable[[], MaskedPart]]:
    """Find splits in `images/` and `masks/`, each with the folder of the same name in both."""
    found = dict[Kind, Callable[[], MaskedPart]]()
    images = root / IMAGES
    folders = [e.name for e in os.scandir(images) if e.is_dir()] if images.is_dir() else []
    for name in sorted(folders, key=lambda name: (len(name), name)):
        masks = next((root / each / name for each in MASKS if (root / each / name).is_dir()), None)
        if (kind := split_kind(name)) and masks is not None:
            found.setdefault(kind, partial(_of_folders, name, images / name, masks, (root,)))
    return found


def _coco_splits(root: Path) -> dict[Kind, Callable[[], MaskedPart]]:
    """Find COCO files named by their splits, as `train.json` or `instances_train2017.json`."""
    found = dict[Kind, Callable[[], MaskedPart]]()
    for file in sorted([*root.glob("*.json"), *(root / MASKS[1]).glob("*.json")]):
        name = file.stem.rpartition("_")[2]
        if kind := split_kind(name):
            folders = (root / IMAGES / name, root / name, root / IMAGES, root)
            found.setdefault(kind, partial(_of_coco, name, file, folders))
    return found


def _of_folders(name: str, images: Path, masks: Path, above: tuple[Path, ...]) -> MaskedPart:
    """Pair the files of two folders by their names without extensions."""
    pictures, drawn = _by_stem(images), _by_stem(masks)
    both = [stem for stem in pictures if stem in drawn]
    problems = [Problem("image without mask", pictures[s]) for s in pictures if s not in drawn]
    problems += [Problem("mask without image", drawn[s]) for s in drawn if s not in pictures]
    if not both:
        raise DataError(
            f"data: no file of {images} has the name of one of {masks}; name a mask as its image "
            "(a.jpg, a.png)"
        )
    source = FolderSource(images, files=[pictures[stem] for stem in both])
    files = FolderSource(masks, files=[drawn[stem] for stem in both])
    return MaskedPart(name, source, FileMasks(files), _classes(above), tuple(problems))


def _by_stem(folder: Path) -> dict[str, str]:
    """Return the image files below a folder by their paths without extension."""
    source = FolderSource(folder, splits=False)
    names = (os.path.relpath(source.path(i), folder) for i in range(len(source)))
    return {os.path.splitext(name)[0]: name for name in names}


def _classes(folders: tuple[Path, ...]) -> tuple[str, ...] | None:
    """Read the first classes.txt of the folders, if there is one: a name per line."""
    for folder in folders:
        file = folder / CLASSES
        if file.is_file():
            try:
                lines = file.read_text(encoding="utf-8").splitlines()
            except (OSError, UnicodeDecodeError) as error:
                raise DataError(
                    f"data: {file} cannot be read ({error}); save it as UTF-8"
                ) from None
            names = tuple(printable(line.strip()) for line in lines if line.strip())
            named = [name for name in names if name != NO_CLASS]
            if twice := sorted({name for name in named if named.count(name) > 1}):
                raise DataError(f"data: {file} names {twice[0]} twice; expected each class once")
            return names
    return None


def _of_coco(name: str, file: Path, folders: tuple[Path, ...]) -> MaskedPart:
    """Open the images and annotations of a COCO file."""
    found = read_coco(file)
    paths = found.paths(folders)
    missing = [
        Problem("annotated image without file", printable(text_of(image.file)))
        for image, path in zip(found.images, paths, strict=True)
        if path is None
    ]
    if len(missing) == len(paths):
        named = f", {missing[0].name} first" if missing else ""
        raise DataError(
            f"data: none of the {len(paths)} images of {file} is in {folders[0]}{named}; "
            "check the folder"
        )
    images, masks = coco_images(found, paths)
    return MaskedPart(name, images, masks, found.classes, tuple(missing))
