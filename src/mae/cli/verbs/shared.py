"""What several verbs share.

A verb is a function: its parameters are the options, its docstring is the help. It imports its
job, and with it torch, only when it runs, and returns what `mae.report.tables.report_of` converts.
"""

from __future__ import annotations

from typing import Literal

Pool = Literal["mean", "cls", "grid"]
Precision = Literal["float32", "bf16", "auto"]
"""Precision of a network that is not trained."""

MULTI_PROCESS_VERBS = frozenset(("doctor", "embed", "evaluate", "finetune", "pretrain", "probe"))
"""Verbs that may run as several processes of one job."""
