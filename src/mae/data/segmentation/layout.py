"""Find images and their masks in a folder, by names alone."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

from mae.data.annotated import (
    ANNOTATIONS,
    IMAGES,
    Layout,
    Problem,
    coco_splits,
    files_by_stem,
    folders_in,
    json_file,
    missing_files,
    read_class_names,
    split_names,
)
from mae.data.segmentation.coco import coco_images, read_coco
from mae.data.segmentation.source import FileMasks, Masks
from mae.data.sources.source import FolderSource, Source, text_of
from mae.data.sources.splits import Kind
from mae.errors import DataError

MASKS = ("masks", ANNOTATIONS)
EXPECTED = (
    "expected images/ and masks/ (PNG) with files of the same names, or images/ and a COCO .json, "
    "there or in train/ and val/"
)


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


def find_masked(data: str | Path) -> Layout[MaskedPart]:
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
    folders = folders_in(root)
    found = dict[Kind, Callable[[], MaskedPart]]()
    for kind, name in split_names(folders):
        if (one := _one_of(root / name, name, root)) is not None:
            found.setdefault(kind, one)
    found = found or _splits_inside(root) or coco_splits(root, _of_coco)
    if found:
        return Layout[MaskedPart](str(root), None, found)
    if (whole := _one_of(root, "", root)) is None:
        names = ", ".join(sorted(folders)[:5]) or "no folders"
        raise DataError(f"data: {root} has {names}; {EXPECTED}")
    return Layout[MaskedPart](str(root), whole, {})


def _one_of(folder: Path, name: str, root: Path) -> Callable[[], MaskedPart] | None:
    """Return what opens the images and masks of a folder, if it holds both."""
    images = folder / IMAGES
    if not images.is_dir():
        return None
    for masks in MASKS:
        if (folder / masks).is_dir() and not [*(folder / masks).glob("*.json")]:
            return partial(_of_folders, name, images, folder / masks, (folder, root))
    file = json_file(folder)
    return None if file is None else partial(_of_coco, name, file, (images, folder))


def _splits_inside(root: Path) -> dict[Kind, Callable[[], MaskedPart]]:
    """Find splits in `images/` and `masks/`, each with the folder of the same name in both."""
    found = dict[Kind, Callable[[], MaskedPart]]()
    images = root / IMAGES
    for kind, name in split_names(folders_in(images)):
        masks = next((root / each / name for each in MASKS if (root / each / name).is_dir()), None)
        if masks is not None:
            found.setdefault(kind, partial(_of_folders, name, images / name, masks, (root,)))
    return found


def _of_folders(name: str, images: Path, masks: Path, above: tuple[Path, ...]) -> MaskedPart:
    """Pair the files of two folders by their names without extensions."""
    stored, drawn = files_by_stem(images), files_by_stem(masks)
    both = [stem for stem in stored if stem in drawn]
    problems = [Problem("image without mask", stored[s]) for s in stored if s not in drawn]
    problems += [Problem("mask without image", drawn[s]) for s in drawn if s not in stored]
    if not both:
        raise DataError(
            f"data: no file of {images} has the name of one of {masks}; name a mask as its image "
            "(a.jpg, a.png)"
        )
    source = FolderSource(images, files=[stored[stem] for stem in both])
    files = FolderSource(masks, files=[drawn[stem] for stem in both])
    return MaskedPart(name, source, FileMasks(files), read_class_names(above), tuple(problems))


def _of_coco(name: str, file: Path, folders: tuple[Path, ...]) -> MaskedPart:
    """Open the images and annotations of a COCO file."""
    found = read_coco(file)
    paths = found.paths(folders)
    names = [text_of(image.file) for image in found.images]
    kind = "annotated image without file"
    missing = missing_files(names, paths, kind=kind, file=file, folders=folders)
    images, masks = coco_images(found, paths)
    return MaskedPart(name, images, masks, found.classes, tuple(missing))
