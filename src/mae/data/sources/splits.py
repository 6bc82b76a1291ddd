"""Detect train, val and test splits among the first-level folders of a data set.

The rules use names only, so they are the same for folders, packs, tar files and lists.
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
    """Content of a first-level folder."""

    folders: frozenset[str] = frozenset()
    loose: bool = False
    """Whether it directly contains images."""
    closed: bool = False
    """Whether it is a pack or holds tar files, whose classes are not folders."""


class Splits(NamedTuple):
    """The split folders of a data set."""

    parts: dict[Kind, str]
    """At most one folder for each kind of split."""
    left: tuple[str, ...]
    """The other folders."""
    guess: str = ""
    """Note on splits that were guessed without a name."""


def split_kind(name: str) -> Kind | None:
    """Return the kind of split that a name denotes, ignoring case; None for any other name.

    A word (train, training, val, valid, validation, dev, eval, test, testing ...) may be followed
    by "set", "data", "images" or "split", and then by any suffix that does not start with a letter:
    `train2017`, `Test_images`. `trains` and `valley` are not splits.
    """
    match = _NAME.fullmatch(name)
    return None if match is None else cast(Kind, match.lastgroup)


def inside_of(paths: Sequence[str]) -> dict[str, Inside]:
    """Return the content of the first-level folders, from the relative paths of all images."""
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
    """Decide which first-level folders are splits; None if they are classes.

    They are splits if all have names of splits; if one has a name for training and holds folders;
    or if all hold the same folders and nothing else, and there are two or one has a split name.

    Args:
        inside: content of each folder.
        size: returns the number of images in a folder; called only if names do not decide.
    """
    kinds = {name: split_kind(name) for name in inside}
    named = [name for name in inside if kinds[name]]
    ready = [name for name in named if inside[name].closed or inside[name].folders]
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
    """Assign folders without a split name to missing splits; return a note on the guess."""
    notes = []
    if "train" not in parts and unnamed:
        parts["train"] = max(sorted(unnamed), key=size)
        unnamed.remove(parts["train"])
        largest = " (it has the most images)" if unnamed else ""
        notes.append(f"{parts['train']}{largest} is taken for training")
    if not {"val", "test"} & {*parts} and len(unnamed) == 1:
        parts["test"] = unnamed[0]
        notes.append(f"{parts['test']} is taken for testing")
    return f"guess: {' and '.join(notes)}; name them train and val to decide it" if notes else ""


def same_folders(inside: Mapping[str, Inside]) -> bool:
    """Whether all folders hold only folders of the same names; some may be missing in one.

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
    """Return a folder with a split name that holds folders named like its siblings, if any."""
    for name, each in inside.items():
        if split_kind(name) and len(each.folders & {*inside}) > 1:
            return name
    return None
