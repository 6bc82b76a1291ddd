"""The run of a verb that trains on images with masks or boxes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from mae.config.kinds import ConfigT
from mae.evaluation.dense.divided import Divided, S
from mae.evaluation.few_labels import FewLabels, write_choice
from mae.train.call import TrainingCall
from mae.train.session import RunInProgress


@contextmanager
def open_annotated_run(
    call: TrainingCall[ConfigT],
    parts: Divided[S],
    choose: Callable[[], ConfigT],
    *,
    classes: Sequence[str],
    labels: str | None,
) -> Iterator[RunInProgress]:
    """Choose few of the training images if asked, and open the run on them.

    Args:
        call: the call of the verb.
        parts: training and test images; their notes are printed.
        choose: returns the configuration, on rank 0.
        classes: names, for the record.
        labels: see `FewLabels`.
    """
    for note in parts.notes:
        call.progress.note(note)
    pool, log = parts.train, call.progress.note
    few = FewLabels(labels).single_draw(
        pool, np.arange(len(pool)), seed=call.config.seed, log=log
    )  # fmt: skip
    session = call.open_run(
        call.ranks.on_main(choose),
        pool.take(few),
        test=parts.test,
        split=None if parts.held is None else parts.held.record(parts.whole),
        labels=labels,
        class_names=list(classes),
    )
    with session as run:
        if labels is not None and run.ranks.is_main_process and not run.record["finished"]:
            write_choice(run.rundir.path / "labels.csv", pool, [few])
        yield run
