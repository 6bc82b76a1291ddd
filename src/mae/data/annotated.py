"""What images with masks and images with boxes have in common: splits, files, problems."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Generic, NamedTuple, Protocol, TypeVar, cast

import numpy as np

from mae.data.decoding.header import printable
from mae.data.sources.source import FolderSource, Source
from mae.data.sources.splits import Kind, split_kind
from mae.data.types import Integers, Pixels
from mae.errors import DataError
from mae.progress import Progress

Looked = TypeVar("Looked")
Part = TypeVar("Part")

IMAGES, ANNOTATIONS = "images", "annotations"
CLASSES = "classes.txt"
NO_CLASS = "-"
"""Line of classes.txt for a value that is ignored."""
_NAMED = 2  # of each kind of problem


class Problem(NamedTuple):
    """An image, mask or box that cannot be used."""

    kind: str
    """What is wrong, as the summary counts it."""
    name: str
    detail: str = ""


class Layout(NamedTuple, Generic[Part]):
    """Undivided data, or its splits, not yet opened."""

    where: str
    whole: Callable[[], Part] | None
    splits: Mapping[Kind, Callable[[], Part]]

    @property
    def test_kind(self) -> Kind:
        """The split to test on by default."""
        return "val" if "val" in self.splits else "test"


class AnnotatedSource:
    """Some of the images of a source, each with an annotation.

    Its `labels` are 0 for every image, so that a fraction of them is chosen or held out as of the
    images of one class.
    """

    images: Source
    ids: Integers
    """Positions of its images in `images` and in the annotations."""

    class_names = ("image",)

    @property
    def labels(self) -> Integers:
        """See the class."""
        return np.zeros(len(self), dtype=np.int64)

    @property
    def pairs(self) -> Source:
        """The same images, each read with its annotation, see `annotated`."""
        return cast(Source, _Pairs(self))

    def __len__(self) -> int:
        return len(self.ids)

    def read(self, index: int) -> bytes | Pixels:
        """Return an image as it is stored."""
        return self.images.read(int(self.ids[index]))

    def annotated(self, index: int) -> Any:
        """Return an image as it is stored, and its annotation."""
        raise NotImplementedError

    def name(self, index: int) -> str:
        """Return the name of an image."""
        return self.images.name(int(self.ids[index]))


@dataclass(frozen=True)
class _Pairs:
    """Reads images with their annotations, for a `SourceReader`."""

    source: AnnotatedSource

    def read(self, index: int) -> Any:
        return self.source.annotated(index)

    def name(self, index: int) -> str:
        return self.source.name(index)


class AnnotatedPart(Protocol):
    """Images of a part of the data, and what is known to be wrong before they are read."""

    @property
    def name(self) -> str:
        """Name of the split; empty where the data are undivided."""

    @property
    def images(self) -> Source:
        """The images that have an annotation."""

    @property
    def problems(self) -> tuple[Problem, ...]:
        """Images and annotations that cannot be used."""


P = TypeVar("P", bound=AnnotatedPart)
Key = tuple[int, int]
"""Number of a part, and of an image in it."""


def look_at_all(
    parts: Sequence[P],
    look: Callable[[Sequence[P], Key], Looked | Problem],
    *,
    label: str,
    progress: Progress,
    threads: int,
) -> tuple[dict[Key, Looked], list[Problem], int]:
    """Look at every image of the parts and its annotation.

    Args:
        parts: of the data.
        look: returns what is found of an image, or why it cannot be used.
        label: what the progress counts.
        progress: shows the images looked at.
        threads: images looked at at a time.

    Returns:
        What was found by part and image, the problems, those of the parts first, and the number
        of images looked at or known to be wrong.
    """
    keys = [(p, i) for p, part in enumerate(parts) for i in range(len(part.images))]
    problems = [problem for part in parts for problem in part.problems]
    count, looked = len(keys) + len(problems), dict[Key, Looked]()
    progress.start(count, label=label)
    with ThreadPoolExecutor(threads) as pool:
        for key, found in zip(keys, pool.map(partial(look, parts), keys), strict=True):
            if isinstance(found, Problem):
                problems.append(found)
            else:
                looked[key] = found
            progress.update(len(looked) + len(problems))
    return looked, problems, count


def count_problems(problems: Sequence[Problem]) -> str:
    """Count the problems by kind in one line, and name the first of each."""
    kinds = defaultdict[str, list[Problem]](list)
    for problem in problems:
        kinds[problem.kind].append(problem)
    counted = []
    for kind, found in kinds.items():
        named = [f"{p.name}: {p.detail}" if p.detail else p.name for p in found[:_NAMED]]
        more = f" and {len(found) - _NAMED:,} more" if len(found) > _NAMED else ""
        counted.append(f"{len(found):,} {kind} ({'; '.join(named)}{more})")
    return ", ".join(counted)


def split_names(names: set[str]) -> Iterator[tuple[Kind, str]]:
    """Yield the names that denote splits, the shortest first, which has precedence."""
    for name in sorted(names, key=lambda name: (len(name), name)):
        if kind := split_kind(name):
            yield kind, name


def folders_in(folder: Path) -> set[str]:
    """Return the names of the folders in a folder; none if there is no such folder."""
    if not folder.is_dir():
        return set()
    # Unlike DirEntry.is_dir, os.path.isdir is false for a link to itself.
    return {name for name in os.listdir(folder) if os.path.isdir(folder / name)}


def json_file(folder: Path) -> Path | None:
    """Return the .json file of a folder, also in its `annotations/`.

    Raises:
        DataError: if there are several.
    """
    files = [*folder.glob("*.json"), *(folder / ANNOTATIONS).glob("*.json")]
    if len(files) > 1:
        raise DataError(
            f"data: {folder} has {len(files)} .json files, {files[0].name} and {files[1].name} "
            "among them; keep one, or name them by their splits (train.json, val.json)"
        )
    return files[0] if files else None


def split_json_files(root: Path) -> Iterator[tuple[Kind, str, Path, tuple[Path, ...]]]:
    """Yield kind, name, COCO file and folders of images of each split that names its file.

    As `train.json`, or `annotations/instances_train2017.json` with `train2017/`.
    """
    for file in sorted([*root.glob("*.json"), *(root / ANNOTATIONS).glob("*.json")]):
        name = file.stem.rpartition("_")[2]
        if kind := split_kind(name):
            yield kind, name, file, (root / IMAGES / name, root / name, root / IMAGES, root)


def coco_splits(root: Path, of_coco: Callable[..., Part]) -> dict[Kind, Callable[[], Part]]:
    """Find COCO files named by their splits; `of_coco` opens name, file and folders of images."""
    found = dict[Kind, Callable[[], Part]]()
    for kind, name, file, folders in split_json_files(root):
        found.setdefault(kind, partial(of_coco, name, file, folders))
    return found


def missing_files(
    names: Sequence[str],
    paths: Sequence[str | None],
    *,
    kind: str,
    file: Path,
    folders: Sequence[Path],
) -> list[Problem]:
    """Return the images of a COCO file that are in none of its folders.

    Args:
        names: of all images.
        paths: of all images; None for a missing one.
        kind: what is wrong with a missing one, as the summary counts it.
        file: the COCO file.
        folders: where its images were looked for.

    Raises:
        DataError: if all of them are missing, or there are none.
    """
    missing = [
        Problem(kind, printable(name))
        for name, path in zip(names, paths, strict=True)
        if path is None
    ]
    if len(missing) == len(paths):
        named = f", {missing[0].name} first" if missing else ""
        raise DataError(
            f"data: none of the {len(paths)} images of {file} is in {folders[0]}{named}; "
            "check the folder"
        )
    return missing


def files_by_stem(folder: Path) -> dict[str, str]:
    """Return the image files below a folder by their paths without extension."""
    source = FolderSource(folder, splits=False)
    names = (os.path.relpath(source.path(i), folder) for i in range(len(source)))
    return {os.path.splitext(name)[0]: name for name in names}


def read_class_names(folders: Sequence[Path]) -> tuple[str, ...] | None:
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


def image_paths(files: Sequence[str], folders: Sequence[Path]) -> list[str | None]:
    """Return the path of each image in the first of the folders that has it, if any."""
    return [next((str(f / file) for f in folders if (f / file).is_file()), None) for file in files]


def images_of(paths: Sequence[str]) -> FolderSource:
    """Return image files, in order, as a source."""
    root = os.path.commonpath([os.path.dirname(path) for path in paths])
    return FolderSource(root, files=[os.path.relpath(path, root) for path in paths])


def refuse_other_classes(given: set[str], classes: Sequence[str], *, part: str) -> None:
    """Refuse classes of a part that the others, or the network, do not have.

    Raises:
        DataError: if there are any.
    """
    if other := sorted(given - {*classes, NO_CLASS}):
        where = f" of {part}" if part else ""
        raise DataError(
            f"data: {len(other)} classes{where} are unknown: {', '.join(other[:3])}; expected "
            f"{', '.join(classes[:5])}{' ...' if len(classes) > 5 else ''}"
        )
