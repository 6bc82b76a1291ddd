"""Benchmark of a run: loader alone, training step alone, and both together."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from statistics import fmean
from typing import NamedTuple, Unpack

import torch

from mae.config.run import PretrainConfig
from mae.data.batching.batch import Batch, BatchPlan, training_batch
from mae.data.batching.loader import MADE_AHEAD, batches, on_device
from mae.data.sources.open import Data, open_source
from mae.data.sources.source import Source
from mae.errors import ConfigError
from mae.jobs.plan import state_bytes
from mae.model.create import create
from mae.planning.estimate import MEASURED, Plan
from mae.planning.hardware import choose_device, has_bf16, this_machine, use_threads
from mae.progress import Progress
from mae.train.bottleneck import Reading, Verdict, is_in_memory
from mae.train.measure import (
    WARM_SECONDS,
    few_pictures,
    others_waiting,
    throw_away_steps,
    times_a_second,
)
from mae.train.resolve import batch_plan, choose_workers, resolve, settle_precision
from mae.train.session import refuse_in_readers
from mae.weights.given import Given
from mae.weights.start_from import follow, require_init

ROUNDS = 2
"""How often loader and both together are measured in turn; the step alone is measured before the
first round and after the last, when no reader process runs."""
_SLICES = 2 * ROUNDS + 2
_FAR = 10**9  # more batches than any benchmark takes


def bench_run(
    data: Data,
    config: PretrainConfig,
    *,
    recipe: str = "custom",
    init: str | Path | None = None,
    seconds: float = 20.0,
    quiet: bool = False,
    **given: Unpack[Given],
) -> Verdict:
    """Measure loader and step of a run, alone and together, and report the bottleneck.

    Args:
        data: whatever `open_source` takes.
        config: the run.
        recipe: its name, for messages.
        init: weights that the configuration takes its network from; only the network is read.
        seconds: approximate measuring time; starting readers and the first steps is extra.
        quiet: show no notes.
        given: what the weights do not say, see `Given`.

    Raises:
        MaeError: for whatever the user must change, in one line.
    """
    refuse_in_readers("jobs.bench_run.bench_run")
    if not 0 < seconds < math.inf:
        raise ConfigError(f"seconds: expected a number above 0, got {seconds}")
    require_init(config, init, **given)
    with Progress(quiet=quiet) as progress, use_threads(config.threads):
        source = open_source(data, log=progress.note)
        device = choose_device(config.device)
        if init is not None and not config.follow_weights:
            raise ConfigError(f"init: has no effect on the speed of {recipe}; drop it")
        if init is not None:
            config = follow(config, init, say=progress.note, **given)
        config, kind = resolve(config, source, say=progress.note)
        config = settle_precision(config, has_bf16=has_bf16(device))
        few = few_pictures(config, device)
        plan = batch_plan(few, source, kind)
        # Chosen as the run would: from the cost of its own batches.
        whole = batch_plan(config, source, kind)
        workers = choose_workers(config, whole, device, say=progress.note)
        progress.note(f"measuring {few.batch} pictures a step for {seconds:g} s on {device}")
        try:
            taken = _measured(few, plan, device, workers=workers, seconds=seconds / _SLICES)
        except torch.OutOfMemoryError as error:
            raise ConfigError(
                f"micro_batch: {few.fixed_micro_batch or few.batch} pictures a pass do not fit "
                f"into the memory of {device}; use a smaller --micro-batch (mae plan says the "
                f"largest)"
            ) from error
        planned = _planned(config, source, recipe=recipe, rate=taken.both)
        return Verdict(
            loader=taken.loader,
            step=taken.step,
            both=taken.both,
            pictures=few.batch,
            workers=workers,
            threads=torch.get_num_threads(),
            reading=taken.reading,
            planned=planned,
            largest=planned.largest,
            in_memory=is_in_memory(source),
            unreadable=taken.unreadable,
            others=others_waiting() if device.type == "cpu" else 0.0,
        )


class _Taken(NamedTuple):
    """Rates in images per second, and the cost of reading."""

    loader: float
    step: float
    both: float
    reading: Reading
    unreadable: int


def _measured(
    few: PretrainConfig, plan: BatchPlan, device: torch.device, *, workers: int, seconds: float
) -> _Taken:
    """Measure each part for the given seconds; loader and both together alternate."""
    bad = set[int]()

    def seen(feed: Iterator[Batch]) -> Iterator[Batch]:
        for batch in feed:
            bad.update(picture.id for picture in batch.bad)
            yield batch

    def finish() -> None:
        if device.type != "cpu":
            torch.accelerator.synchronize(device)

    def rate(act: Callable[[int], object], *, rounds_of: int = 1) -> float:
        def a_round(number: int) -> None:
            for place in range(rounds_of):
                act(number * rounds_of + place)

        rounds = times_a_second(a_round, least=2, seconds=seconds, finish=finish)
        return rounds * rounds_of * few.batch

    reading = _reading(plan, seconds=seconds / 2)
    with throw_away_steps(few, create(few.model, objective=few.objective, seed=few.seed)) as step:
        again = next(on_device(iter([training_batch(plan, 0)]), device))
        times_a_second(lambda n: step(again, n), least=1, seconds=min(seconds, WARM_SECONDS))
        alone = [rate(lambda n: step(again, n))]
        loader, both = list[float](), list[float]()
        feed = batches(plan, start=0, stop=_FAR, workers=workers)
        # Readers that start together finish together: count whole rounds.
        readers = max(1, workers)
        with closing(feed):  # type: ignore[type-var]  # a generator; ends the readers
            fed = on_device(seen(feed), device)
            for _ in range(ROUNDS):
                # Batches made ahead while nothing consumed them would inflate the rate: discard
                # them. After the loader alone none are left.
                for _ in range(MADE_AHEAD * workers + (device.type == "cuda")):
                    next(fed)
                loader.append(rate(lambda n: next(fed), rounds_of=readers))
                both.append(rate(lambda n: step(next(fed), n), rounds_of=readers))
        alone.append(rate(lambda n: step(again, n)))
    return _Taken(fmean(loader), fmean(alone), fmean(both), reading, len(bad))


def _reading(plan: BatchPlan, *, seconds: float) -> Reading:
    """Time this process making batches, in wall time and in CPU time.

    Time in which other processes had the CPU counts neither as work nor as waiting for the source.
    """
    training_batch(plan, 0)  # the first call loads libraries
    busy, queued, began = time.process_time(), _queued_seconds(), time.perf_counter()
    done = 0
    while not done or time.perf_counter() - began < seconds:
        done += 1
        training_batch(plan, done)
    passed = time.perf_counter() - began - (_queued_seconds() - queued)
    busy = time.process_time() - busy
    pictures = done * plan.batch
    return Reading(max(busy, passed) / pictures, busy / pictures)


def _queued_seconds() -> float:
    """Return the seconds this thread was runnable without a CPU; 0 where not recorded."""
    try:
        return int(Path("/proc/thread-self/schedstat").read_text().split()[1]) / 1e9
    except (OSError, ValueError, IndexError):
        return 0.0


def _planned(config: PretrainConfig, source: Source, *, recipe: str, rate: float) -> Plan:
    """Plan the whole run from the measured rate."""
    trained, state = state_bytes(config)
    return Plan(
        recipe=recipe,
        config=config,
        machine=this_machine(config.device),
        images=len(source),
        images_from="counted",
        parameters=trained,
        state_bytes=state,
        rate=rate,
        rate_basis=MEASURED,
        rate_note="loader and step together",
    )
