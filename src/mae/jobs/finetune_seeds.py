"""Fine-tuning with several seeds: one run per seed, and mean and spread of the scores."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from mae.config.run import FinetuneConfig
from mae.data.sources.open import data_name
from mae.errors import ConfigError
from mae.evaluation.evidence import Score, score
from mae.jobs.finetune import Tuned, finetune
from mae.report.tables import value_rows


class TunedSeeds(NamedTuple):
    """Finished runs that differ only in their seed."""

    path: Path
    """Parent folder of the run directories."""
    labels: str | None
    runs: tuple[Tuned, ...]

    def scores(self) -> dict[str, Score]:
        """Return mean and std of each metric."""
        top5 = [run.top5 for run in self.runs if run.top5 is not None]
        figures = {"top1": [run.top1 for run in self.runs], "top5": top5}
        figures["loss"] = [run.loss for run in self.runs]
        return {name: score(found) for name, found in figures.items() if found}

    def values(self) -> dict[str, object]:
        """Return the values that --json prints: mean and std of the scores, and every run."""
        first, found = self.runs[0], dict[str, object]()
        for name, one in self.scores().items():
            found |= {name: one.mean, f"{name}_spread": one.spread}
        found |= {name: getattr(first, name) for name in ("classes", "train", "test")}
        runs = [run.values() | {"seed": run.config.seed} for run in self.runs]
        seeds = [run["seed"] for run in runs]
        return found | {"labels": self.labels, "seeds": seeds, "path": self.path, "runs": runs}

    def rows(self) -> Iterator[tuple[str, ...]]:
        """Yield mean and spread, then a row per run."""
        yield from value_rows(self.values() | {"runs": None})
        for run in self.runs:
            yield f"seed {run.config.seed}", f"{run.top1:.2%}", str(run.path)


def finetune_seeds(
    config: FinetuneConfig,
    *,
    seeds: int,
    data: str | Path,
    out: str | Path | None = None,
    labels: str | None = None,
    **how: Any,
) -> TunedSeeds:
    """Fine-tune with several seeds one after another, or resume a stopped call.

    Each run equals a single run with its seed: it draws its own few labels and, where a part of
    the data is held out for testing, its own part. Finished runs are kept, so that more seeds
    can be added later.

    Args:
        config: configuration of the runs; its seed is the first one.
        seeds: number of seeds.
        data: see `labelled`.
        out: folder of the runs, seed-0 and so on; `runs/DATA-NAME-tuned` if none.
        labels: few labels, see `FewLabels`; none: all.
        how: other arguments of `finetune`: weights, quiet and so on.

    Raises:
        MaeError: for whatever the user must change, in one line.
        Stopped: when asked to stop; the same call resumes from there.
    """
    if seeds < 1:
        raise ConfigError(f"seeds: expected at least 1, got {seeds}")
    folder = Path("runs", f"{data_name(data)}-tuned") if out is None else Path(out)
    if (folder / "run.json").exists():
        raise ConfigError(
            f"{folder}: is a run itself, expected a folder for a run of each seed; choose another "
            "with --out, or drop --seeds"
        )
    runs = [
        finetune(
            replace(config, seed=seed), data=data, out=folder / f"seed-{seed}", labels=labels, **how
        )
        for seed in range(config.seed, config.seed + seeds)
    ]
    return TunedSeeds(folder, labels, tuple(runs))
