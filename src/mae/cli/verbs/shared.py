"""What several verbs share.

A verb is a function: its parameters are the options, its docstring is the help. It imports its
job, and with it torch, only when it runs, and returns what `mae.report.tables.report_of` converts.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, Literal

from mae.cli.options import without_options

Pool = Literal["mean", "cls", "grid"]
Precision = Literal["float32", "bf16", "auto"]
"""Precision of a network that is not trained."""

MULTI_PROCESS_VERBS = frozenset(
    "doctor embed evaluate finetune predict pretrain probe".split()
    + ["segment train", "segment evaluate", "detect evaluate"]
)
"""Verbs that may run as several processes of one job."""


def resuming_command() -> list[str]:
    """Return the command that resumes this run, which goes back to an older checkpoint once."""
    return ["mae", *without_options(sys.argv[1:], ("resume-from", "skip-steps"))]


def call(job: Callable[..., object], arguments: dict[str, Any], **more: object) -> object:
    """Call a job with the arguments of its verb, whose parameters have the same names.

    Args:
        job: the function that Python users call.
        arguments: what the verb was called with; the options of `Given` are keywords of the job.
        more: other arguments of the job.
    """
    given = arguments.pop("given")
    return job(**arguments, **given, **more)
