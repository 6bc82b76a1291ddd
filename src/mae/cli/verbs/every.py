"""Registry of all verbs of the `mae` command, in the groups of its help."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from mae.cli.verbs.images import bench, bench_data, data_inspect, data_pack, data_verify
from mae.cli.verbs.looking import (
    doctor,
    plan,
    recipes_diff,
    recipes_list,
    recipes_paper,
    recipes_show,
    report,
)
from mae.cli.verbs.shown import Shown
from mae.cli.verbs.training import demo, finetune, pretrain
from mae.cli.verbs.using import embed, evaluate, probe, reconstruct
from mae.cli.verbs.weights import (
    weights_convert,
    weights_diff,
    weights_export,
    weights_inspect,
    weights_push,
)


class Verb(NamedTuple):
    """A verb of the command and its function."""

    name: str
    run: Callable[..., Shown]


GROUPS: dict[str, tuple[Callable[..., Shown], ...]] = {
    "train": (demo, pretrain, finetune),
    "use": (probe, evaluate, reconstruct, embed),
    "inspect": (
        data_inspect,
        report,
        recipes_list,
        recipes_show,
        recipes_diff,
        recipes_paper,
        plan,
        data_pack,
        data_verify,
        weights_inspect,
        weights_convert,
        weights_diff,
        weights_export,
        weights_push,
        doctor,
        bench,
        bench_data,
    ),
}
VERBS = tuple(Verb(run.__name__.replace("_", " "), run) for runs in GROUPS.values() for run in runs)
