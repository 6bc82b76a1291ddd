"""Verbs that report: run reports, recipes, plans, and the machine check."""

from __future__ import annotations

from itertools import groupby
from operator import attrgetter
from pathlib import Path

from mae.config.detect import DetectConfig
from mae.config.model import refuse_without_effect
from mae.config.run import PretrainConfig
from mae.config.serialize import to_dict
from mae.recipes.catalogue import RECIPES, find_recipe
from mae.recipes.custom import build_config, kept_fields, recipe_toml
from mae.recipes.detecting import DETECTING
from mae.report.tables import Report


def report(*runs: Path) -> object:
    """Write the offline page of one or several runs: curves, images, numbers.

    Args:
        runs: Run directories; several are compared.
    """
    from mae.report.page import write_report

    return {"report": write_report(*runs)}


def recipes_list() -> object:
    """List the recipes with their published results."""
    rows = list[tuple[str, ...]]()
    for kind, group in groupby(RECIPES, attrgetter("kind")):
        rows += [(kind,), *((f"  {r.name}", r.about, r.expected) for r in group), ("",)]
    keys = ("name", "about", "source", "expected")
    recipes = [{"sort": r.kind} | {key: getattr(r, key) for key in keys} for r in RECIPES]
    return Report({"recipes": recipes}, rows[:-1])


def recipes_show(name: str) -> object:
    """Print the fields of a recipe as TOML, which --config reads.

    Args:
        name: Name of the recipe.
    """
    recipe = find_recipe(name)
    return Report(to_dict(recipe.config), [(recipe_toml(recipe),)])


def recipes_diff(a: str, b: str) -> object:
    """Compare two recipes, or a run and a recipe, with the source of each number.

    Args:
        a: Recipe, or run directory.
        b: Recipe or run directory to compare it with.
    """
    from mae.jobs.recipes_diff import recipe_diff

    return recipe_diff(a, b)


def recipes_paper() -> object:
    """Print the published results with the commands that would reproduce them."""
    from mae.jobs.recipes_paper import published_results

    return published_results()


def plan(
    recipe: str = "folder",
    *,
    data: str | None = None,
    gpu: str | None = None,
    ranks: int | None = None,
    images: int | None = None,
    measure: bool = False,
    config: Path | None = None,
    quiet: bool = False,
    **fields: object,
) -> object:
    """Estimate memory, micro-batch, time and reading cores of a pre-training run.

    For --gpu, or for this machine. Each line states the basis of its value. Of a recipe of
    detection, the memory of state and encoder; of no other recipe anything.

    Args:
        gpu: GPU and number of them, as in h100x8; none: this machine.
        ranks: Number of processes, each with a GPU or a part of this machine; none: one per GPU.
        images: Number of images instead of --data; none: that of ImageNet-1k, for the paper's
            recipes.
        measure: Measure the rate of this machine with a few steps, which are discarded.
    """
    if recipe in {known.name for known in DETECTING}:
        own = {"data": data, "gpu": gpu, "ranks": ranks, "images": images}
        refuse_without_effect("detection", "pre-training", measure=measure or None, **own)
        detection = build_config(recipe, DetectConfig, file=config, fields=fields)
        from mae.jobs.plan import plan_detection

        return plan_detection(detection, recipe=recipe)
    resolved = build_config(recipe, PretrainConfig, file=config, fields=fields)
    from mae.jobs import plan as job
    from mae.progress import Progress

    with Progress(quiet=quiet) as progress:
        kept = kept_fields(recipe, fields, file=config)
        given = {
            "data": data,
            "gpu": gpu,
            "ranks": ranks,
            "images": images,
            "measure": measure,
            "kept": kept,
        }
        result = job.plan(resolved, recipe=recipe, log=progress.note, **given)  # type: ignore[arg-type]
    return result


def doctor() -> object:
    """Check this machine: libraries, device, image decoders, disk.

    With --ranks 2, also what ranks need of each other: all-reduce, a shared folder, clocks.
    """
    from mae.jobs import doctor as job

    checks = job.doctor()
    exit_code = 0 if all(check.ok for check in checks) else 1
    return Report({"checks": checks}, [check.row() for check in checks], exit_code)
