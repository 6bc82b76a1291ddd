"""List published results with the commands that would reproduce them (mae recipes paper)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from typing import Any

from mae.recipes.reproductions import REPRODUCTIONS
from mae.recipes.tables import TABLES
from mae.report.tables import WIDTH, command_lines, wrapped

SCORES = (*TABLES, *REPRODUCTIONS)
ABOUT = (
    "Published by others; tables and figures are the paper's, FINETUNE.md and PRETRAIN.md the "
    "published code's. IN1K, COCO, INAT17 and so on stand for folders of those data, mae_*.pth for "
    "the released files. A command that appears again need not run again. Accuracies are top-1 in "
    "%; of IN-C it is the mean corruption error, where less is better."
)
_WIDTHS = (14, 30, 9, 21, 14)


def paper_values(built: Collection[str]) -> dict[str, Any]:
    """Return the published results as JSON-ready values.

    Args:
        built: verbs that this version has.
    """
    scores = [score._asdict() for score in SCORES]
    return {"about": ABOUT, "not_built": not_built(built), "scores": scores}


def paper_rows(built: Collection[str]) -> Iterator[tuple[str, ...]]:
    """Return the published results as rows of text.

    Args:
        built: verbs that this version has.
    """
    yield from wrapped((ABOUT,), (WIDTH,))
    if missing := not_built(built):
        yield (f"Not built in this version: mae {', mae '.join(missing)}.",)
    yield ("",)
    yield from wrapped(("where", "what", "model", "published", "measured here"), _WIDTHS)
    for score in SCORES:
        published = "\n".join(f"{value} {unit}" for unit, value in score.values.items())
        cells = (score.where, score.what, score.model, published, score.measured)
        yield ("",)
        yield from wrapped(cells, _WIDTHS)
        for command in score.commands:
            yield from ((line,) for line in command_lines(command, indent="    "))
        took = f"took others: {score.took}" if score.took else ""
        for note in filter(None, (took, score.note)):
            yield from ((f"    {line}",) for (line,) in wrapped((note,), (WIDTH - 4,)))


def not_built(built: Collection[str]) -> list[str]:
    """List the verbs of the reproduction commands that this version lacks."""
    verbs = Counter(command.split()[1] for score in SCORES for command in score.commands)
    return [verb for verb in verbs if verb not in built]
