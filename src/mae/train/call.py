"""What the verbs that train share: what a call asks for, and the run that it opens or resumes."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from inspect import signature
from pathlib import Path
from typing import Any, Generic

from mae.config.kinds import ConfigT
from mae.data.sources.open import Data, data_name
from mae.data.sources.source import Source
from mae.parallel.processes import Communicator, open_communicator
from mae.planning.hardware import choose_device
from mae.progress import Progress
from mae.recipes.custom import kept_fields
from mae.runs.directory import read_record
from mae.runs.rewind import Rewind, rewind_of
from mae.runs.signals import StopSignal
from mae.train.resolve import resolve_on_main
from mae.train.session import RunInProgress, data_record, open_session, refuse_in_readers
from mae.weights.given import Given, configure, lasting, path_of
from mae.weights.start_from import config_from_weights


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingCall(Generic[ConfigT]):
    """A call of a verb that trains, and the processes that carry it out."""

    config: ConfigT
    """As asked, before it is resolved."""
    recipe: str
    """Name of the recipe, for the record."""
    kept: Collection[str] | None
    """Dotted names of the fields that the user set, where the recipe chooses the others."""
    given: Given
    weights: str | None
    data: Data
    folder: Path
    begun: dict[str, Any] | None
    """run.json of the run to resume."""
    back_to: Rewind | None
    finished_too: bool
    stop: StopSignal
    ranks: Communicator
    progress: Progress

    @property
    def how(self) -> dict[str, Any]:
        """Arguments of `resolve`."""
        return {"weights": self.weights, "begun": self.begun, "given": self.given}

    @property
    def split(self) -> dict[str, Any]:
        """Arguments that divide the data as the run to resume did, else as that of the weights."""
        if self.begun is None:
            return {"seed": self.config.seed, "weights": self.weights}
        split = self.begun["data"].get("split") or {}
        return {"seed": split.get("seed", self.config.seed)}

    def choose_by_weights(self, choose: Callable[..., ConfigT], *names: str) -> ConfigT:
        """Return the configuration with what a recipe chooses by weights and device.

        A run to resume keeps what was chosen.

        Args:
            choose: takes the configuration, the network of the weights or the configured one,
                `on_cpu` and `kept`.
            names: fields that it chooses besides the image size of weights.
        """
        config, kept, follows = self.config, self.kept or (), self.config.follow_weights
        if self.begun is not None:
            stored = self.begun["config"]
            own: dict[str, Any] = {name: stored[name] for name in names if name in stored}
            if follows:
                own["resize"] = tuple(stored["model"]["image_size"])
            return replace(config, **{n: value for n, value in own.items() if n not in kept})
        model = config.model
        if follows:
            assert self.weights is not None
            model = config_from_weights(config, self.weights, **self.given).model
        on_cpu = choose_device(config.device).type == "cpu"
        return choose(config, model, on_cpu=on_cpu, kept=kept)

    @contextmanager
    def open_run(
        self,
        config: ConfigT,
        source: Source,
        *,
        test: Source | None = None,
        split: Mapping[str, object] | None = None,
        start: dict[str, object] | None = None,
        **facts: object,
    ) -> Iterator[RunInProgress]:
        """Resolve the configuration, and open the session of the run, see `open_session`.

        Args:
            config: the configuration of the call, with what was chosen by the images.
            source: the training images.
            test: the test images, if there are any.
            split: how they were held out, for the record.
            start: entry of the record on the initial weights; none: the weights of the call.
            facts: further entries of the record.
        """
        resolved = resolve_on_main(self.ranks, config, source, **self.how)
        weights = None if self.weights is None else lasting(self.weights)
        with open_session(
            self.folder,
            resolved,
            self.progress,
            self.stop,
            recipe=self.recipe,
            data=data_record(self.data, source, resolved.kind, test=test)
            | ({} if test is None else {"split": split}),
            start={"weights": weights} if start is None else start,
            finished_too=self.finished_too,
            back_to=self.back_to,
            ranks=self.ranks,
            **facts,
        ) as run:
            yield run


@contextmanager
def open_call(
    verb: Callable[..., object],
    config_type: type[ConfigT],
    recipe: str | ConfigT,
    fields: Mapping[str, Any],
    *,
    data: Data,
    weights: str | os.PathLike[str] | None,
    out: str | Path | None,
    suffix: str,
    resume_from: int | None,
    skip_steps: int,
    finished_too: bool,
    quiet: bool,
    command: Sequence[str],
    based_on: str,
    kept: Collection[str] | None,
) -> Iterator[TrainingCall[ConfigT]]:
    """Settle what a call asks for; handle stop requests, ranks and progress within the block.

    Args:
        verb: the public function; its name and its keywords are for messages.
        config_type: type of the configuration.
        recipe: see the verb, as the other arguments.
        fields: fields of the recipe, and settings of weights, by keyword.
        data: name of the default run directory, with `suffix`.
        weights: weights or a run to start from.
        out: the run directory.
        suffix: end of the name of the default run directory.
        resume_from: see the verb.
        skip_steps: see the verb.
        finished_too: see the verb.
        quiet: see the verb.
        command: see the verb.
        based_on: see the verb.
        kept: see the verb.

    Raises:
        MaeError: for wrong arguments.
    """
    refuse_in_readers(verb.__name__)
    weights = None if weights is None else path_of(weights, name="weights")
    others = signature(verb).parameters
    config, given = configure(recipe, config_type, fields, others=others)
    if isinstance(recipe, str):
        kept = kept_fields(recipe, {n: value for n, value in fields.items() if n not in given})
    folder = Path("runs", f"{data_name(data)}{suffix}") if out is None else Path(out)
    back_to = rewind_of(folder, resume_from, skip_steps)
    with (
        StopSignal("", command=command) as stop,
        open_communicator() as ranks,
        Progress(quiet=quiet or not ranks.is_main_process) as progress,
    ):
        yield TrainingCall(
            config=config,
            recipe=recipe if isinstance(recipe, str) else based_on,
            kept=kept,
            given=given,
            weights=weights,
            data=data,
            folder=folder,
            begun=ranks.on_main(lambda: read_record(folder)),
            back_to=back_to,
            finished_too=finished_too,
            stop=stop,
            ranks=ranks,
            progress=progress,
        )
