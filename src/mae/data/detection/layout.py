"""Find images and their boxes in a folder: COCO, YOLO or Pascal VOC, by names alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
    image_paths,
    images_of,
    json_file,
    missing_files,
    read_class_names,
    split_names,
)
from mae.data.detection.coco import read_coco_boxes
from mae.data.detection.files import VocFiles, YoloFiles, stems, yaml_names
from mae.data.detection.source import Annotations
from mae.data.sources.source import FolderSource, Source, text_of
from mae.data.sources.splits import Kind
from mae.errors import DataError

LABELS = "labels"
_VOC_IMAGES = ("JPEGImages", IMAGES)
_VOC_XML = ("Annotations", ANNOTATIONS)
EXPECTED = (
    "expected images/ and a COCO .json, images/ and labels/ of YOLO .txt, or JPEGImages/ and "
    "Annotations/ of VOC .xml, there or in train/ and val/"
)


class BoxedPart(NamedTuple):
    """Images and boxes of a split or of undivided data, not yet read."""

    name: str
    """Name of the split; empty where the data are undivided."""
    images: Source
    annotations: Annotations
    categories: Mapping[int | str, str] | None
    """Name of each category, in order; None: not known before the annotations are read."""
    problems: tuple[Problem, ...] = ()
    """Images that are left out already."""
    lost: tuple[Problem, ...] = ()
    """Boxes that are left out already."""

    def shown(self, name: str) -> str:
        """Return the name of a file of this part for messages."""
        return f"{self.name}/{name}" if self.name else name


_Opener = Callable[[], BoxedPart]


def find_boxed(data: str | Path) -> Layout[BoxedPart]:
    """Find images with boxes: one set of them, or splits.

    Args:
        data: a folder with `images/` and a COCO file; with `images/` and `labels/` of YOLO files;
            or with `JPEGImages/` (or `images/`) and `Annotations/` of VOC files. The splits are
            folders of that kind, folders in `images/` and `labels/`, COCO files named by them, or
            lists in `ImageSets/Main`.

    Raises:
        DataError: if there are none.
    """
    root = Path(data).expanduser()
    if not root.is_dir():
        raise DataError(f"data: no folder {root.absolute()}; {EXPECTED}")
    if (found := boxed_layout(root)) is None:
        names = ", ".join(sorted(folders_in(root))[:5]) or "no folders"
        raise DataError(f"data: {root} has {names}; {EXPECTED}")
    return found


def boxed_layout(root: Path) -> Layout[BoxedPart] | None:
    """Return the images with boxes of a folder, None if it has no such files."""
    found = dict[Kind, _Opener]()
    for kind, name in split_names(folders_in(root)):
        if (one := _one_of(root / name, name, root)) is not None:
            found.setdefault(kind, one)
    found = found or _yolo_splits(root) or coco_splits(root, _of_coco) or _voc_splits(root)
    if found:
        return Layout(str(root), None, found)
    whole = _one_of(root, "", root)
    return None if whole is None else Layout(str(root), whole, {})


def _one_of(folder: Path, name: str, root: Path) -> _Opener | None:
    """Return what opens the images and boxes of a folder, if it holds both."""
    images, labels = folder / IMAGES, folder / LABELS
    if images.is_dir() and labels.is_dir() and stems(labels, ".txt"):
        return partial(_of_yolo, name, images, labels, (folder, labels, root))
    if (voc := _voc_folders(folder)) is not None:
        return partial(_of_voc, name, *voc, (folder, root), None)
    file = json_file(folder)
    return None if file is None else partial(_of_coco, name, file, (images, folder))


def _yolo_splits(root: Path) -> dict[Kind, _Opener]:
    """Find splits in `images/` and `labels/`, each with the folder of the same name in both."""
    return {
        kind: partial(
            _of_yolo, name, root / IMAGES / name, root / LABELS / name, (root, root / LABELS)
        )
        for kind, name in reversed([*split_names(folders_in(root / IMAGES))])
        if (root / LABELS / name).is_dir()
    }


def _voc_folders(folder: Path) -> tuple[Path, Path] | None:
    """Return the folders of images and of .xml files, which may be one."""
    for xml in (*(folder / each for each in _VOC_XML), folder):
        if xml.is_dir() and [*xml.glob("*.xml")]:
            images = (folder / each for each in _VOC_IMAGES if (folder / each).is_dir())
            return next(images, folder), xml
    return None


def _voc_splits(root: Path) -> dict[Kind, _Opener]:
    """Find the lists of a VOC folder: `ImageSets/Main/train.txt` and `val.txt`."""
    lists = {path.stem: path for path in sorted((root / "ImageSets" / "Main").glob("*.txt"))}
    voc = _voc_folders(root) if lists else None
    if voc is None or "train" not in lists:  # trainval.txt beside no train.txt is all of them
        return {}
    return {
        kind: partial(_of_voc, kind, *voc, (root,), lists[kind])
        for kind in ("train", "val", "test")
        if kind in lists
    }


def _of_coco(name: str, file: Path, folders: tuple[Path, ...]) -> BoxedPart:
    """Open the images and annotations of a COCO file."""
    found = read_coco_boxes(file)
    paths = image_paths(found.files, folders)
    names = [text_of(image) for image in found.files]
    kind = "listed image without file"
    missing = missing_files(names, paths, kind=kind, file=file, folders=folders)
    kept = [i for i, path in enumerate(paths) if path is not None]
    images = images_of([path for path in paths if path is not None])
    problems = (*found.problems, *missing)
    return BoxedPart(name, images, found.boxes(kept), found.categories, problems, found.lost)


def _of_yolo(name: str, images: Path, labels: Path, above: tuple[Path, ...]) -> BoxedPart:
    """Open images and the .txt files of the same names; an image without one has no objects."""
    files, drawn = files_by_stem(images), stems(labels, ".txt")
    drawn.pop("classes", None)
    source = FolderSource(images, files=[*files.values()])
    texts = YoloFiles(str(labels), tuple(drawn.get(stem, "") for stem in files))
    problems = [Problem("labels without image", drawn[stem]) for stem in drawn if stem not in files]
    return BoxedPart(name, source, texts, _yolo_categories(above), tuple(problems))


def _yolo_categories(folders: Sequence[Path]) -> dict[int | str, str] | None:
    """Return the classes of classes.txt, or of the `names` of a .yaml file."""
    if (names := read_class_names(folders)) is not None:
        return dict(enumerate(names))
    for file in (f for folder in folders for f in sorted(folder.glob("*.y*ml"))):
        try:
            found = yaml_names(file.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"data: {file} cannot be read ({error}); save it as UTF-8") from None
        if found:
            return found
    return None


def _of_voc(
    name: str, images: Path, xml: Path, above: tuple[Path, ...], listed: Path | None
) -> BoxedPart:
    """Open images and the .xml files of the same names, all of them or those of a list."""
    files, drawn = files_by_stem(images), stems(xml, ".xml")
    wanted = list(drawn)
    if listed is not None:
        lines = listed.read_text(encoding="utf-8").splitlines()
        wanted = list(dict.fromkeys(line.split()[0] for line in lines if line.strip()))
    problems = [Problem("listed image without file", s) for s in wanted if s not in files]
    problems += [Problem("image without .xml", s) for s in wanted if s in files and s not in drawn]
    if listed is None:
        problems += [Problem("image without .xml", files[s]) for s in files if s not in drawn]
    both = [stem for stem in wanted if stem in files and stem in drawn]
    if not both:
        raise DataError(
            f"data: no image of {images} has the name of an .xml file of {listed or xml}; name "
            "them alike (a.jpg, a.xml)"
        )
    source = FolderSource(images, files=[files[stem] for stem in both])
    texts = VocFiles(str(xml), tuple(drawn[stem] for stem in both))
    names = read_class_names(above)
    own: dict[int | str, str] | None = None if names is None else {each: each for each in names}
    return BoxedPart(name, source, texts, own, tuple(problems))
