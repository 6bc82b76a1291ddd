"""Which folders of the first level are splits of a data set (train, val, test), and which classes.

The rules see names only, so that they are the same for folders, packs, tar files and lists.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple, cast

Kind = Literal["train", "val", "test"]

_NAME = re.compile(
    r"(?:(?P<train>train(?:ing|val)?)"
    r"|(?P<val>val(?:id(?:ation)?)?|dev(?:elopment)?|eval(?:uation)?)"
    r"|(?P<test>test(?:ing)?))"
    r"(?:set|data|images|split)?(?:[^a-z].*)?",
    re.IGNORECASE | re.DOTALL,
)


class Inside(NamedTuple):
    """What a folder of the first level holds."""

    folders: frozenset[str] = frozenset()
    loose: bool = False
    """Whether images lie in it directly."""
    closed: bool = False
    """Whether it is a pack or holds tar files, whose classes are no folders."""

    @property
    def holds_classes(self) -> bool:
        """Whether it can be a split."""
        return self.closed or bool(self.folders)


class Splits(NamedTuple):
    """Which folders are the splits."""

    parts: dict[Kind, str]
    """One folder of each kind, at most."""
    left: tuple[str, ...]
    """The other folders."""
    guess: str = ""
    """What was decided although no name says it."""


def split_kind(name: str) -> Kind | None:
    """Give the kind of split that a name is usual for, in any case; None for any other name.

    A word (train, training, val, valid, validation, dev, eval, test, testing ...) may be followed
    by "set", "data", "images" or "split", and by anything that begins with no letter: `train2017`,
    `Test_images`. So `trains` and `valley` are no splits.
    """
    match = _NAME.fullmatch(name)
    return None if match is None else cast(Kind, match.lastgroup)


def inside_of(paths: Sequence[str]) -> dict[str, Inside]:
    """Give what the folders of the first level hold, from the relative paths of all images."""
    folders: dict[str, set[str]] = {}
    loose = set[str]()
    for folder in {path.rpartition("/")[0] for path in paths}:
        top, deeper, rest = folder.partition("/")
        within = folders.setdefault(top, set())
        if deeper:
            within.add(rest.partition("/")[0])
        else:
            loose.add(top)
    folders.pop("", None)  # images at the root
    return {top: Inside(frozenset(names), top in loose) for top, names in folders.items()}


def splits_of(paths: Sequence[str]) -> Splits | None:
    """Find the splits among the relative paths of all images; see `find_splits`."""
    return find_splits(
        inside_of(paths), lambda name: sum(path.startswith(f"{name}/") for path in paths)
    )


def find_splits(inside: Mapping[str, Inside], size: Callable[[str], int]) -> Splits | None:
    """Decide which folders of the first level are splits; None if they are classes.

    They are splits if all are named as such; if one is named for training and holds folders; or
    if all hold the same folders and nothing else, and there are two or one is named as a split.

    Args:
        inside: what each folder holds.
        size: number of images in one, asked only where the names do not decide.
    """
    kinds = {name: split_kind(name) for name in inside}
    named = [name for name in inside if kinds[name]]
    ready = [name for name in named if inside[name].holds_classes]
    if same_folders(inside) and (named or len(inside) == 2):
        pool = [name for name in inside if name in ready or not kinds[name]]
    elif named and (len(named) == len(inside) or any(kinds[name] == "train" for name in ready)):
        pool = ready or named
    else:
        return None
    parts: dict[Kind, str] = {}
    for name in sorted(pool, key=lambda name: (len(name), name)):
        if (kind := kinds[name]) is not None:
            parts.setdefault(kind, name)
    guess = _guessed(parts, [name for name in pool if not kinds[name]], size)
    left = tuple(sorted(name for name in inside if name not in parts.values()))
    return Splits(parts, left, guess)


def _guessed(parts: dict[Kind, str], unnamed: list[str], size: Callable[[str], int]) -> str:
    """Add folders that no name tells to the splits that are missing, and say so."""
    said = []
    if "train" not in parts and unnamed:
        parts["train"] = max(sorted(unnamed), key=size)
        unnamed.remove(parts["train"])
        largest = " (it has the most images)" if unnamed else ""
        said.append(f"{parts['train']}{largest} is taken for training")
    if not {"val", "test"} & {*parts} and len(unnamed) == 1:
        parts["test"] = unnamed[0]
        said.append(f"{parts['test']} is taken for testing")
    return f"guess: {' and '.join(said)}; name them train and val to decide it" if said else ""


def same_folders(inside: Mapping[str, Inside]) -> bool:
    """Whether all folders hold nothing but folders of the same names; one may lack a few.

    Folders that hold splits themselves (`class/train`, `class/test`) do not count.
    """
    folders = [each.folders for each in inside.values()]
    if len(folders) < 2 or any(each.loose for each in inside.values()):
        return False
    most = max(folders, key=len)
    if len(most) < 2 or all(split_kind(name) for name in most):
        return False
    return all(each <= most and 2 * len(each) >= len(most) for each in folders)


def split_beside_classes(inside: Mapping[str, Inside]) -> str | None:
    """Name a folder called as a split that holds the folders it lies beside."""
    for name, each in inside.items():
        if split_kind(name) and len(each.folders & {*inside}) > 1:
            return name
    return None
