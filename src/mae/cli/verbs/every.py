"""Registry of all verbs: every public function of the modules of a group, in their order."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import ModuleType
from typing import NamedTuple

from mae.cli.verbs import detecting, images, looking, segmenting, training, using, weights


class Verb(NamedTuple):
    """A verb of the command and its function."""

    name: str
    run: Callable[..., object]


def _verbs_of(*modules: ModuleType) -> list[Verb]:
    return [
        Verb(name.replace("_", " "), run)
        for module in modules
        for name, run in vars(module).items()
        if inspect.isfunction(run) and run.__module__ == module.__name__ and name[0] != "_"
    ]


GROUPS = {
    "train": _verbs_of(training),
    "use": _verbs_of(using),
    "segment": _verbs_of(segmenting),
    "detect": _verbs_of(detecting),
    "inspect": _verbs_of(looking, images, weights),
}
VERBS = [verb for group in GROUPS.values() for verb in group]
