"""Partial fine-tuning (He et al. 2021, Figure 9): train only the last blocks and the head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mae.data.sources.open import data_name
from mae.errors import ConfigError
from mae.jobs.finetune import Tuned, finetune
from mae.recipes.catalogue import FINETUNE_FOLDER
from mae.weights.given import Given


def partial_probe(
    weights: str | Path,
    data: str | Path,
    *,
    blocks: float | None,
    out: Path | None = None,
    labels: str | None = None,
    lr: float | None = None,
    fields: Mapping[str, Any] | None = None,
    given: Given | None = None,
    quiet: bool = False,
    command: Sequence[str] = (),
) -> Tuned:
    """Fine-tune the last blocks with the recipe finetune-folder; the others are frozen.

    Args:
        weights: whatever `load_encoder` takes.
        data: see `labelled`.
        blocks: number of last blocks to train; 0.5: only the MLP of the last one.
        out: run directory; `runs/DATA-partial-BLOCKS` if none.
        labels: few labels, see `FewLabels`; none: all.
        lr: base rate; none: that of the recipe.
        fields: other fields of the recipe to change; None leaves a field unchanged.
        given: what the weights do not say.
        quiet: show no progress.
        command: the command line, for the record.

    Raises:
        MaeError: for whatever the user must change, in one line.
    """
    if blocks is None:
        raise ConfigError("blocks: expected --blocks, as in 0.5, 1 or 4 of the last blocks")
    changed = {name: value for name, value in (fields or {}).items() if value is not None}
    optim = FINETUNE_FOLDER.optim if lr is None else replace(FINETUNE_FOLDER.optim, lr=lr)
    config = replace(FINETUNE_FOLDER, train_blocks=blocks, optim=optim, **changed)
    return finetune(
        config,
        data=data,
        weights=weights,
        out=out or Path("runs", f"{data_name(data)}-partial-{blocks:g}"),
        labels=labels,
        quiet=quiet,
        command=command,
        based_on="finetune-folder",
        **(given or {}),
    )
