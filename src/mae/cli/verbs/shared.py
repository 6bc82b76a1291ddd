"""What several verbs share.

A verb is a function: its parameters are the options, its docstring is the help. It imports its
job, and with it torch, only when it runs, and returns what `mae.report.tables.report_of` converts.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any, Literal

from mae.cli.options import without_options
from mae.config.kinds import ConfigT
from mae.config.serialize import to_dict
from mae.errors import ConfigError
from mae.recipes.custom import build_config, kept_fields, to_toml
from mae.report.tables import Report

Pool = Literal["mean", "cls", "grid"]
Precision = Literal["float32", "bf16", "auto"]
"""Precision of a network that is not trained."""

MULTI_PROCESS_VERBS = frozenset(
    "doctor embed evaluate finetune predict pretrain probe".split()
    + ["segment train", "segment evaluate", "detect train", "detect evaluate"]
)
"""Verbs that may run as several processes of one job."""


def resuming_command() -> list[str]:
    """Return the command that resumes this run, which goes back to an older checkpoint once."""
    return ["mae", *without_options(sys.argv[1:], ("resume-from", "skip-steps"))]


def train_on(name: str, config_type: type[ConfigT], asked: dict[str, Any], *, noun: str) -> object:
    """Call a job that trains on annotated images, or print its configuration.

    Args:
        name: of the job and its module.
        config_type: type of its configuration.
        asked: what the verb was called with.
        noun: what the images have.
    """
    recipe, fields, file, given = (asked.pop(n) for n in ("recipe", "fields", "config", "given"))
    config = build_config(recipe, config_type, file=file, fields=fields)
    if asked.pop("print_config"):
        return Report(to_dict(config), [(to_toml(to_dict(config)),)])
    if asked["data"] is None:
        verb = name.replace("_", " ")
        raise ConfigError(f"{verb}: expected --data, a folder of images with {noun}")
    job = getattr(import_module(f"mae.jobs.{name}"), name)
    kept, command = kept_fields(recipe, fields, file=file), resuming_command()
    own = {"finished_too": False, "based_on": recipe, "command": command, "kept": kept}
    return job(config, **asked, **own, **given)


def call(job: Callable[..., object], arguments: dict[str, Any], **more: object) -> object:
    """Call a job with the arguments of its verb, whose parameters have the same names.

    Args:
        job: the function that Python users call.
        arguments: what the verb was called with; the options of `Given` are keywords of the job.
        more: other arguments of the job.
    """
    given = arguments.pop("given")
    return job(**arguments, **given, **more)
