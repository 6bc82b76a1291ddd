"""Few-label options shared by all probes, and formatting of their results."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from mae.config.model import refuse_without_effect
from mae.data.sources.source import Source
from mae.errors import ConfigError
from mae.evaluation.few_labels import CHOICE, Ids, label_draws, write_choice


class FewSettings(NamedTuple):
    """Options of learning from few labels, in several draws."""

    labels: str | None = None
    """See `label_draws`; none: all labels."""
    labels_out: Path | None = None
    """.csv file for the choice."""
    runs: int | None = None
    """Number of draws; none: one."""

    def draws(
        self, source: Source, among: Ids, *, seed: int, say: Callable[[str], None]
    ) -> list[Ids]:
        """Choose the training images of each run, and write them to `labels_out` if given.

        Args:
            source: labelled images.
            among: ids of the training images.
            seed: seed of the choice.
            say: called with a line on the choice.

        Raises:
            ConfigError: for a setting without effect, or less than one run.
        """
        if self.runs is not None and self.runs < 1:
            raise ConfigError(f"seeds: expected at least 1, got {self.runs}")
        if self.labels is None:
            refuse_without_effect("all labels", "--labels", labels_out=self.labels_out)
            return [among] * (self.runs or 1)
        draws = label_draws(source, self.labels, among=among, seed=seed, runs=self.runs)
        if self.labels_out is not None:
            write_choice(self.labels_out, source, draws)
        key = "" if self.labels.endswith(CHOICE) else f", seed {seed}"
        runs = f", {len(draws)} draws" if len(draws) > 1 else ""
        say(f"labels {self.labels}: {len(draws[0]):,} of {len(among):,} pictures{key}{runs}")
        return draws


ALL = FewSettings()


def percent(mean: float, spread: float, *, runs: int) -> str:
    """Format a fraction in percent, with its std where there are several runs."""
    return f"{mean:.1%} ± {100 * spread:.1f}" if runs > 1 else f"{mean:.1%}"


def counted(train: int, test: int, *, labels: str | None, runs: int) -> str:
    """Describe the number of training and test images."""
    few = [labels] if labels is not None else []
    notes = [*few, f"mean ± deviation of {runs} runs"] if runs > 1 else few
    said = f" ({', '.join(notes)})" if notes else ""
    return f"{train:,} train{said}, {test:,} test"
