"""Verbs that train: demo, pretrain, finetune."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from mae.cli.verbs.shared import resuming_command
from mae.config.run import FinetuneConfig, PretrainConfig
from mae.config.serialize import to_dict
from mae.errors import ConfigError
from mae.recipes.custom import build_config, kept_fields, to_toml
from mae.report.tables import Report
from mae.weights.given import Given


def demo(
    *, out: Path = Path("runs/demo"), minutes: float | None = None, quiet: bool = False
) -> object:
    """Pre-train on built-in images in minutes, and show what was learned.

    Args:
        out: Folder of the run.
        minutes: Time to pre-train for, without the comparison; none: the whole demo.
    """
    from mae.jobs import demo as job

    return job.demo(out=out, minutes=minutes, quiet=quiet)


def pretrain(
    recipe: str = "folder",
    *,
    data: str | None = None,
    out: Path | None = None,
    init: Path | None = None,
    resume_from: int | None = None,
    skip_steps: int = 0,
    given: Given,
    config: Path | None = None,
    print_config: bool = False,
    quiet: bool = False,
    **fields: object,
) -> object:
    """Pre-train on a folder of images; resumes an unfinished run.

    The recipe folder chooses network and training by the images, the device and --minutes, prints
    what it chose, and leaves every option as you set it; the defaults below are those for many
    images on a GPU. --print-config with --data prints the choice.

    Args:
        out: Folder of the run; none: runs/DATA-NAME.
        init: Weights, run or hf:OWNER/NAME to start from.
        resume_from: Step of an older checkpoint to go back to; none: the newest.
        skip_steps: Steps after it whose batches are not trained on, as after bad images.
    """
    resolved = build_config(recipe, PretrainConfig, file=config, fields=fields)
    kept = kept_fields(recipe, fields, file=config)
    if print_config:
        if kept is not None and data is not None:
            from mae.train.choice import choose_for_data

            given_weights = init is not None
            resolved = choose_for_data(resolved, data, kept=kept, from_weights=given_weights)
        return Report(to_dict(resolved), [(to_toml(to_dict(resolved)),)])
    if data is None:
        raise ConfigError("pretrain: expected --data, a folder of images (or fashion-mnist)")
    from mae.jobs import pretrain as job

    ask = partial(
        job.pretrain, resolved, based_on=recipe, out=out, init=init, command=resuming_command()
    )
    ask = partial(ask, kept=kept)
    ask = partial(ask, resume_from=resume_from, skip_steps=skip_steps)
    return ask(data=data, finished_too=False, quiet=quiet, **given)


def finetune(
    recipe: str = "finetune-folder",
    *,
    data: str | None = None,
    weights: Path | None = None,
    out: Path | None = None,
    labels: str | None = None,
    resume_from: int | None = None,
    skip_steps: int = 0,
    seeds: int | None = None,
    given: Given,
    config: Path | None = None,
    print_config: bool = False,
    quiet: bool = False,
    **fields: object,
) -> object:
    """Fine-tune a classifier from weights; resumes an unfinished run.

    The recipe finetune-folder chooses batch, rate and warm-up by images and network, prints them,
    and leaves every option as you set it; the defaults below are those for many images.

    DATA holds one folder per class, of which a fifth is held out; or train/ and val/ with such
    folders. --seeds makes one run per seed, from --seed on, in folders under OUT, and prints mean
    and spread.

    Args:
        out: Folder of the run; none: runs/DATA-NAME-tuned.
        labels: Few labels: a fraction as in 1%, a number as in 10/class, or a .csv of an earlier
            draw.
        resume_from: Step of an older checkpoint to go back to; none: the newest.
        skip_steps: Steps after it whose batches are not trained on, as after bad images.
        seeds: Number of runs with different seeds; none: one run.
    """
    resolved = build_config(recipe, FinetuneConfig, file=config, fields=fields)
    if print_config:
        return Report(to_dict(resolved), [(to_toml(to_dict(resolved)),)])
    if data is None:
        raise ConfigError("finetune: expected --data, labelled images (or fashion-mnist)")
    from mae.jobs.finetune import finetune as job
    from mae.jobs.finetune import finetune_seeds

    one = partial(job, finished_too=False)
    run = one if seeds is None else partial(finetune_seeds, seeds=seeds)
    ask = partial(run, resolved, data=data, weights=weights, out=out, labels=labels, quiet=quiet)
    ask = partial(ask, resume_from=resume_from, skip_steps=skip_steps)
    kept = kept_fields(recipe, fields, file=config)
    return ask(based_on=recipe, command=resuming_command(), kept=kept, **given)
