"""Time and memory of a step by the GPU's own clock, in turn with transformers'."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch

from benchmarks.data import KIND, draw_pictures
from benchmarks.gpu.arithmetic import LARGEST, Peak, share_of_peak
from benchmarks.gpu.report import LoaderRow, StepRow
from benchmarks.gpu.sides import Step, our_step, synthetic_batch, their_step
from mae.config import PretrainConfig
from mae.data.batch import Batch
from mae.data.loader import MADE_AHEAD, batches, on_device
from mae.data.source import FolderSource
from mae.jobs.fitting import free, largest_that_fits
from mae.jobs.setup import batch_plan, choose_workers, cores, new_state
from mae.model.create import create
from mae.sizes import model_config
from mae.train.meter import state_bytes
from mae.train.state import TrainState

DEVICE = torch.device("cuda")
WARM_STEPS, STEPS = 3, 5
ROUNDS, PAIRS = 5, 10
LOADER_BATCH, LOADER_STEPS = 256, 60


def measure_step(name: str, precision: str, *, peak: Peak | None, until: float) -> StepRow:
    """Measure our step alone at the largest batch that fits, then in turn with transformers'.

    Args:
        name: vit-b/16 and the like.
        precision: as in a recipe.
        peak: of the card, where it is known.
        until: by `time.monotonic`; no round begins later.
    """
    config = config_of(name, precision)
    row = StepRow(model=name, precision=precision)
    try:
        state = new_state(create(config.model), config)
        ours = our_step(state, config)
        # The first step allocates the moments: one that ends half-way would leave some.
        ours(synthetic_batch(config.model, 1, DEVICE))
    except torch.cuda.OutOfMemoryError:
        return row._replace(note="does not fit this card")
    count = largest_that_fits(partial(_fits, [ours], config), start=LARGEST)
    if count is None:
        return row._replace(note="does not fit this card")
    batch = synthetic_batch(config.model, count, DEVICE)
    torch.cuda.reset_peak_memory_stats()
    rate = count / _median_seconds(ours, batch, until=until)
    row = row._replace(
        batch=count,
        images_per_second=rate,
        share=None if peak is None else share_of_peak(rate, config.model, _peak(peak, precision)),
        peak_bytes=torch.cuda.max_memory_allocated(),
        **state_bytes(state)._asdict(),
    )
    del batch
    return _against_transformers(row, ours, state, config, until=until)


def config_of(name: str, precision: str, *, batch: int = 1) -> PretrainConfig:
    """Give the configuration of a step."""
    model = model_config(name)
    return PretrainConfig(model=model, batch=batch, precision=precision, device=DEVICE.type)  # type: ignore[arg-type]


def _peak(peak: Peak, precision: str) -> float:
    return peak.float32 if precision == "float32" else peak.half


def _fits(steps: Sequence[Step], config: PretrainConfig, count: int) -> bool:
    """Try a batch twice on each side: the second time nothing is new."""
    try:
        batch = synthetic_batch(config.model, count, DEVICE)
        for step in (*steps, *steps):
            step(batch)
        torch.cuda.synchronize()
        return True
    except torch.cuda.OutOfMemoryError:
        return False
    finally:
        free()


def seconds_of(step: Step, batch: Batch) -> float:
    """Time a step by events on its stream, the mean of a few without a wait between them."""
    began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    began.record()
    for _ in range(STEPS):
        step(batch)
    ended.record()
    ended.synchronize()
    return began.elapsed_time(ended) / 1000 / STEPS


def _warm(step: Step, batch: Batch) -> None:
    for _ in range(WARM_STEPS):
        step(batch)
    torch.cuda.synchronize()


def _median_seconds(step: Step, batch: Batch, *, until: float) -> float:
    _warm(step, batch)
    taken = [seconds_of(step, batch)]
    while len(taken) < ROUNDS and time.monotonic() < until:
        taken.append(seconds_of(step, batch))
    return statistics.median(taken)


def _against_transformers(
    row: StepRow, ours: Step, state: TrainState, config: PretrainConfig, *, until: float
) -> StepRow:
    """Run both sides in turn at a batch that fits while both lie on the card."""
    free()
    resident = torch.cuda.memory_allocated()  # what our side keeps while theirs is measured
    try:
        theirs = their_step(state.model, config)  # type: ignore[arg-type]
        theirs(synthetic_batch(config.model, 1, DEVICE))
    except torch.cuda.OutOfMemoryError:
        return row._replace(note="no room for transformers' beside it")
    assert row.batch is not None
    count = largest_that_fits(partial(_fits, [ours, theirs], config), start=row.batch)
    if count is None:
        return row._replace(note="no room for transformers' beside it")
    batch = synthetic_batch(config.model, count, DEVICE)
    _warm(ours, batch)
    torch.cuda.reset_peak_memory_stats()
    _warm(theirs, batch)
    peak_bytes = torch.cuda.max_memory_allocated() - resident
    pairs = list[tuple[float, float]]()
    while len(pairs) < PAIRS and time.monotonic() < until:
        if len(pairs) % 2:
            own, other = seconds_of(ours, batch), seconds_of(theirs, batch)
        else:
            other, own = seconds_of(theirs, batch), seconds_of(ours, batch)
        pairs.append((own, other))
    return row._replace(
        paired_batch=count, ratios=tuple(b / a for a, b in pairs), their_peak_bytes=peak_bytes
    )


def measure_loader(precision: str, *, largest: int, until: float) -> LoaderRow:
    """Measure ViT-B's step fed by the loader from JPEG files drawn for it, and fed by nothing.

    Args:
        precision: as in a recipe.
        largest: batch that fits.
        until: by `time.monotonic`; the last step begins before.
    """
    count = min(largest, LOADER_BATCH)
    config = config_of("vit-b/16", precision, batch=count)
    step = our_step(new_state(create(config.model), config), config)
    alone = count / _median_seconds(step, synthetic_batch(config.model, count, DEVICE), until=until)
    with tempfile.TemporaryDirectory() as name:
        source = FolderSource(_files(Path(name), at_least=4 * count))
        plan = batch_plan(config, source, KIND)
        workers = choose_workers(config, plan, DEVICE)
        feed = batches(plan, start=0, stop=10**6, workers=workers)
        fed = on_device(feed, DEVICE)
        # What the readers made ahead while nobody took it would count as speed.
        for _ in range(MADE_AHEAD * workers + 1):
            step(next(fed))
        done, seconds = _timed_steps(step, lambda: next(fed), until=until)
        feed.close()  # type: ignore[attr-defined]  # a generator; ends the readers
    return LoaderRow(
        batch=count, workers=workers, cores=cores(), alone=alone, fed=done * count / seconds
    )


def _timed_steps(step: Step, take: Callable[[], Batch], *, until: float) -> tuple[int, float]:
    """Make steps by the clock; at least a few, however late it is."""
    torch.cuda.synchronize()
    began, done = time.perf_counter(), 0
    while done < STEPS or (done < LOADER_STEPS and time.monotonic() < until):
        step(take())
        done += 1
    torch.cuda.synchronize()
    return done, time.perf_counter() - began


def _files(folder: Path, *, at_least: int) -> Path:
    """Draw some JPEGs and give each as many names as it takes."""
    draw_pictures(folder)
    drawn = sorted(folder.iterdir())
    for copy in range(1, -(-at_least // len(drawn))):
        for path in drawn:
            path.with_name(f"{path.stem}-{copy}.jpg").hardlink_to(path)
    return folder
