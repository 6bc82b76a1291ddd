"""Held-out test sets of labelled images, including those recorded by a fine-tuning run."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mae.data.sources.source import Source, notes_of
from mae.data.sources.subset import subset
from mae.errors import ConfigError, DataError, WeightsError
from mae.evaluation.few_labels import Ids
from mae.evaluation.split import held_out
from mae.runs.directory import RunDir, read_record
from mae.weights.formats.native import CONFIG
from mae.weights.io.hub import local
from mae.weights.read import find_file

TEST_SHARE = 0.2


class Held(NamedTuple):
    """A fraction of each class held out for testing."""

    seed: int
    share: float = TEST_SHARE

    def divide(self, source: Source) -> tuple[Ids, Ids]:
        """Return the training ids and the held-out ids, ascending.

        Duplicates in a list are dropped: copies of an image could be in both parts.

        Raises:
            DataError: if no class has two images.
        """
        assert source.labels is not None
        ids = np.arange(len(source))
        if notes_of(source):
            names = [os.path.normpath(source.name(i)) for i in ids.tolist()]
            ids = np.sort(np.unique(names, return_index=True)[1])
        held = held_out(source.labels[ids], self.share, seed=self.seed)
        return ids[~held], ids[held]

    def names_digest(self, source: Source) -> str:
        """Hash the names of the held-out images: equal for a folder and a pack of it."""
        names = [source.name(i) for i in self.divide(source)[1].tolist()]
        return hashlib.sha256("\0".join(names).encode()).hexdigest()

    def about(self) -> str:
        """Describe it in a few words."""
        return f"{self.share:.0%} of each class held out for testing, seed {self.seed}"


class TunedOn(NamedTuple):
    """The labelled images of a fine-tuning run, as recorded by the run or its classifier."""

    path: str
    """Path of the data during the run."""
    learnt: str
    """Fingerprint of the training images."""
    tested: str
    """Fingerprint of the test images."""
    held: Held
    """How the test images were held out; older runs do not record this."""
    names: str = ""
    """Hash of the names of the held-out images; empty for older runs."""

    def division(self, source: Source) -> tuple[Ids, Ids] | None:
        """Return the run's training and test ids; None if the run used other images."""
        with suppress(DataError):
            learnt, tested = self.held.divide(source)
            if subset(source, tested).fingerprint() == self.tested:
                return learnt, tested
        return None

    def warning(self, data: str | Path, source: Source, *, whole: bool) -> str | None:
        """Return a warning if the run was trained on the test images, or may have been.

        Args:
            data: name of the data.
            source: the test images.
            whole: whether the data are undivided, so that they may contain both parts of the run.
        """
        if source.fingerprint() == self.learnt:
            return f"{data}: the classifier was fine-tuned on these images"
        if not whole:
            return None
        with suppress(DataError):
            if self.names and self.held.names_digest(source) == self.names:
                return (
                    f"{data}: not the files of its fine-tuning, but their names: if they are those "
                    "in another form, most of them were learnt from; give the folder of the "
                    "fine-tuning to test on what it held out"
                )
        if str(Path(data).expanduser().resolve()) == self.path:
            return (
                f"{data}: not the images of its fine-tuning any more (other names, sizes or "
                "labels): it may have learnt from some of those that are tested on"
            )
        return None


def tuned_on(weights: str | Path | None) -> TunedOn | None:
    """Find the labelled images that a classifier was fine-tuned on; None without a record.

    The record in the folder of the weights has precedence over that of the run, as the folder may
    have been copied. Errors in the weights are reported when they are loaded.
    """
    if weights is None:
        return None
    try:
        file = find_file(local(weights))
    except (WeightsError, OSError):
        return None
    # RUN/weights/model.safetensors, or RUN/checkpoints/step-1/model.safetensors
    runs = [record for folder in file.absolute().parents[1:3] if (record := _record(folder))]
    described = _description(file.with_name(CONFIG)).get("facts")
    for data in [described, *runs]:
        found = _read(data.get("data") if isinstance(data, Mapping) else None, runs)
        if found is not None:
            return found
    return None


def _read(data: Any, runs: list[Mapping[str, Any]]) -> TunedOn | None:
    if not isinstance(data, Mapping):
        return None
    learnt, _, tested = str(data.get("fingerprint", "")).partition("-")
    if not tested:  # of pre-training
        return None
    split = data.get("split")
    if not isinstance(split, Mapping):
        # Older versions did not record the seed of the split and used that of the run.
        same = [run for run in runs if run["data"].get("fingerprint") == data["fingerprint"]]
        split = {} if not same else {"seed": same[0]["config"].get("seed", 0)}
    held = Held(int(split.get("seed", 0)), float(split.get("share", TEST_SHARE)))
    names = str(split.get("names", ""))
    return TunedOn(str(data.get("path", "")), learnt, tested, held, names)


def _record(run: Path) -> Mapping[str, Any]:
    with suppress(ConfigError, OSError):
        return read_record(RunDir(run).path) or {}
    return {}


def _description(config: Path) -> Mapping[str, Any]:
    with suppress(ValueError, OSError, RecursionError):
        values = json.loads(config.read_bytes())
        return values if isinstance(values, dict) else {}
    return {}
