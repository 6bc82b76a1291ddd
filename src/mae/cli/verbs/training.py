"""Verbs that train: demo, pretrain, finetune."""

from __future__ import annotations

import math
import sys
from functools import partial
from pathlib import Path

from mae.cli.verbs.shown import Shown
from mae.config.run import FinetuneConfig, PretrainConfig
from mae.config.serialize import to_dict
from mae.errors import ConfigError
from mae.recipes.custom import build_config, to_toml
from mae.runs.directory import RunDir
from mae.weights.given import Given


def demo(
    *, out: Path = Path("runs/demo"), minutes: float | None = None, quiet: bool = False
) -> Shown:
    """Pre-train on built-in pictures in minutes, and show what was learnt."""
    from mae.jobs import demo as job

    result = job.demo(out=out, minutes=minutes, quiet=quiet)
    return Shown(result.values(), result.rows(), result.exit_code)


def pretrain(
    recipe: str = "folder",
    *,
    data: str | None = None,
    out: Path | None = None,
    init: Path | None = None,
    given: Given,
    config: Path | None = None,
    print_config: bool = False,
    quiet: bool = False,
    **fields: object,
) -> Shown:
    """Pre-train on a folder of pictures; goes on where an unfinished run stopped."""
    settled = build_config(recipe, PretrainConfig, file=config, fields=fields)
    if print_config:
        return Shown(to_dict(settled), [(to_toml(to_dict(settled)),)])
    if data is None:
        raise ConfigError("pretrain: expected --data, a folder of pictures (or fashion-mnist)")
    from mae.jobs import pretrain as job

    command = ["mae", *sys.argv[1:]]
    ask = partial(job.pretrain, settled, based_on=recipe, out=out, init=init, command=command)
    run = ask(data=data, finished_too=False, quiet=quiet, **given)
    paths = RunDir(run.path)
    files = {"run": run.path, "weights": paths.weights, "report": paths.report}
    loss = None if math.isnan(run.loss) else run.loss
    values = {**files, "steps": run.num_steps, "loss": loss, "resumed": run.resumed}
    shown = values | {"loss": f"{run.loss:.4g}"}
    return Shown(values, [(name, str(value)) for name, value in shown.items()])


def finetune(
    recipe: str = "finetune-folder",
    *,
    data: str | None = None,
    weights: Path | None = None,
    out: Path | None = None,
    labels: str | None = None,
    seeds: int | None = None,
    given: Given,
    config: Path | None = None,
    print_config: bool = False,
    quiet: bool = False,
    **fields: object,
) -> Shown:
    """Fine-tune a classifier from weights; goes on where an unfinished run stopped.

    DATA holds one folder per class, of which a fifth is held out; or train/ and val/ of such.
    --seeds makes a run for each seed from --seed on, in folders under OUT, for mean and spread.
    """
    settled = build_config(recipe, FinetuneConfig, file=config, fields=fields)
    if print_config:
        return Shown(to_dict(settled), [(to_toml(to_dict(settled)),)])
    if data is None:
        raise ConfigError("finetune: expected --data, labelled pictures (or fashion-mnist)")
    from mae.jobs.finetune import finetune as job
    from mae.jobs.finetune_seeds import finetune_seeds

    one = partial(job, finished_too=False)
    said = partial(one if seeds is None else partial(finetune_seeds, seeds=seeds), settled)
    ask = partial(said, data=data, weights=weights, out=out, labels=labels, quiet=quiet)
    result = ask(based_on=recipe, command=["mae", *sys.argv[1:]], **given)
    return Shown(result.values(), result.rows())
