"""Time and memory of the steps by the GPU's own clock, all sides in turn in one process."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks.data import KIND, draw_images
from benchmarks.gpu.arithmetic import Peak, share_of_peak
from benchmarks.gpu.report import LoaderRow, SideRow
from benchmarks.gpu.sides import (
    Step,
    compile_blocks,
    graphed_step,
    our_step,
    peer_step,
    synthetic_batch,
    transformers_model,
)
from benchmarks.step.sides import Lightly
from benchmarks.textbook import TextbookMAE
from mae.config.run import PretrainConfig
from mae.config.sizes import model_config
from mae.data.batching.batch import Batch
from mae.data.batching.loader import MADE_AHEAD, batches, on_device
from mae.data.sources.pack import Form, open_pack
from mae.jobs.data_pack import pack
from mae.model.autoencoder import MaskedAutoencoder
from mae.model.create import create
from mae.planning.hardware import cores
from mae.train.micro_batch import free, largest_that_fits
from mae.train.resolve import batch_plan, new_state
from mae.train.step import Loss, pretraining_loss
from mae.train.workers import choose_workers

DEVICE = torch.device("cuda")
WARM_STEPS, STEPS, ROUNDS = 3, 5, 10
LOADER_STEPS = 60
BUILDING = 0.7  # of the time of a part, to build its sides
PACK_SIDE = 256
COMPILED = ", blocks compiled"
GRAPHED = "mae, blocks compiled, CUDA graph"
B_SIDES = (
    "mae", "mae, eager", f"mae{COMPILED}", GRAPHED,
    "transformers", f"transformers{COMPILED}",
    "lightly", f"lightly{COMPILED}",
    "textbook", f"textbook{COMPILED}",
)  # fmt: skip
"""`mae` is what `mae pretrain` does on a GPU: the whole loss compiled."""


class Part(NamedTuple):
    """A network, its precision, and the sides that take turns; the first is the reference."""

    model: str
    precision: str
    batch: int
    """Tried first; halved until it fits."""
    sides: tuple[str, ...]

    @property
    def reserve(self) -> int:
        """How many times the batch must fit beside our eager step alone.

        All sides of a part stay on the card while they take turns: twice leaves room for their
        weights, three times for the memory that a CUDA graph keeps for itself as well.
        """
        return 3 if GRAPHED in self.sides else 2


def parts(half: str) -> tuple[Part, ...]:
    """List what `make gpu` measures, in this order, in the card's half precision."""
    few = ("mae", "mae, eager", "transformers", f"transformers{COMPILED}")
    return (
        Part("vit-b/16", half, 512, B_SIDES),
        Part("vit-l/16", half, 256, (f"mae{COMPILED}", "mae, eager", *few[2:])),
        Part("vit-h/14", half, 128, (f"mae{COMPILED}", "mae, eager")),
        Part("vit-b/16", "float32", 128, (f"mae{COMPILED}", "mae, eager", *few[2:])),
    )


class _Made(NamedTuple):
    """A side that is on the card, and the bytes that it keeps between steps."""

    step: Step
    bytes: int


def measure(part: Part, *, peak: Peak | None, until: float) -> tuple[SideRow, ...]:
    """Let all sides of a part make steps in turn at one batch size.

    Args:
        part: what is measured.
        peak: of the card, where it is known.
        until: by `time.monotonic`; no round begins later, and no side is built after `BUILDING`
            of the time until then.
    """
    config = config_of(part.model, part.precision)
    build_until = time.monotonic() + BUILDING * (until - time.monotonic())
    torch.compiler.reset()  # what other parts compiled counts against torch's limit
    free()
    ours = create(config.model)  # once: drawing the weights of ViT-H takes seconds
    count = _largest(ours, config, start=part.batch, reserve=part.reserve)
    if count is None:
        return (SideRow(part.model, part.precision, part.sides[0], note="does not fit this card"),)
    batch = synthetic_batch(config.model, count, DEVICE)
    rows, made = dict[str, SideRow](), dict[str, _Made]()
    for name in part.sides:
        rows[name] = SideRow(part.model, part.precision, name, batch=count)
        if time.monotonic() >= build_until:
            rows[name] = rows[name]._replace(note="no time left")
            continue
        try:
            made[name] = _make(name, ours, config, batch)
        except Exception as error:  # a side that does not run is a row that says so
            rows[name] = rows[name]._replace(note=noted(error))
            free()
    for name in [*made]:
        try:
            rows[name] = rows[name]._replace(peak_bytes=_peak_bytes(name, made[name], batch))
        except torch.cuda.OutOfMemoryError as error:  # beside the sides that were made after it
            del made[name]
            rows[name] = rows[name]._replace(note=noted(error))
            free()
    rounds = list[dict[str, float]]()
    while made and len(rounds) < ROUNDS and (time.monotonic() < until or len(rounds) < 2):
        # Another side begins each time, so that none always comes after the same one.
        names = [*made][len(rounds) % len(made) :] + [*made][: len(rounds) % len(made)]
        rounds.append({name: seconds_of(made[name].step, batch) for name in names})
    for name in made:
        seconds = tuple(each[name] for each in rounds)
        rate = count / statistics.median(seconds)
        share = None if peak is None else share_of_peak(rate, config.model, _peak(peak, part))
        ratios = tuple(each[name] / each[next(iter(made))] for each in rounds)
        rows[name] = rows[name]._replace(seconds=seconds, share=share, ratios=ratios)
    return tuple(rows.values())


def config_of(name: str, precision: str, *, batch: int = 1) -> PretrainConfig:
    """Return the configuration of a part on the device."""
    model = model_config(name)
    return PretrainConfig(model=model, batch=batch, precision=precision, device=DEVICE.type)  # type: ignore[arg-type]


def _peak(peak: Peak, part: Part) -> float:
    return peak.float32 if part.precision == "float32" else peak.half


def _largest(
    ours: MaskedAutoencoder, config: PretrainConfig, *, start: int, reserve: int
) -> int | None:
    """Return the largest batch, halving from the start, of which `reserve` times as many fit."""

    def fits(count: int) -> bool:
        try:
            more = synthetic_batch(config.model, reserve * count, DEVICE)
            for _ in range(2):
                step(more)
            torch.cuda.synchronize()
            return True
        except torch.cuda.OutOfMemoryError:
            return False
        finally:
            free()

    try:
        step = our_step(new_state(deepcopy(ours), config), config)
        return largest_that_fits(fits, start=start) or None
    except torch.cuda.OutOfMemoryError:
        return None


def noted(error: Exception) -> str:
    """Say in short why something was not measured."""
    said = next(iter(str(error).splitlines()), "")[:80]
    return f"{type(error).__name__}: {said}"


def _make(name: str, ours: MaskedAutoencoder, config: PretrainConfig, batch: Batch) -> _Made:
    """Build a side with the weights of ours, or for lightly and a textbook its own; warm it up."""
    before = torch.cuda.memory_allocated()
    who, _, how = name.partition(", ")
    if who == "mae":
        state = new_state(deepcopy(ours), config)
        if how.startswith("blocks compiled"):
            compile_blocks(state.model)
        loss: Loss = pretraining_loss
        if not how:
            loss = torch.compile(pretraining_loss, fullgraph=True, dynamic=False)
        step = our_step(state, config, loss=loss)
        if name == GRAPHED:
            step = graphed_step(state, config, batch)
    else:
        if who == "transformers":
            model = transformers_model(ours).to(DEVICE)
        else:
            model = {"lightly": Lightly, "textbook": TextbookMAE}[who](config.model).to(DEVICE)
        if how:
            compile_blocks(model)
        step = peer_step(model, config)
    for _ in range(WARM_STEPS):
        step(batch)
    torch.cuda.synchronize()
    return _Made(step, torch.cuda.memory_allocated() - before)


def _peak_bytes(name: str, side: _Made, batch: Batch) -> int | None:
    """Return the most memory that a side takes; torch does not count a graph's own pool."""
    held = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    side.step(batch)
    if name == GRAPHED:
        return None
    return torch.cuda.max_memory_allocated() - held + side.bytes


def seconds_of(step: Step, batch: Batch) -> float:
    """Time a step by CUDA events: the mean of a few steps without a synchronisation between."""
    began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    began.record()
    for _ in range(STEPS):
        step(batch)
    ended.record()
    ended.synchronize()
    return began.elapsed_time(ended) / 1000 / STEPS


def measure_loader(precision: str, *, count: int, until: float) -> LoaderRow:
    """Measure ViT-B's compiled step with the loader reading a pack, and without the loader.

    Args:
        precision: as in a recipe.
        count: images of a batch.
        until: by `time.monotonic`; the last step begins before.
    """
    torch.compiler.reset()
    free()
    config = config_of("vit-b/16", precision, batch=count)
    state = new_state(create(config.model), config)
    compile_blocks(state.model)
    step = our_step(state, config)
    given = synthetic_batch(config.model, count, DEVICE)
    for _ in range(WARM_STEPS):
        step(given)
    alone = count / statistics.median(seconds_of(step, given) for _ in range(3))
    with tempfile.TemporaryDirectory() as name:
        source = open_pack(_packed(Path(name), at_least=2 * count))
        plan = batch_plan(config, source, KIND)
        workers = choose_workers(config, plan, DEVICE, log=print)
        feed = batches(plan, start=0, stop=10**6, workers=workers)
        fed = on_device(feed, DEVICE)
        # Drain the prefetched batches first: they would inflate the rate.
        for _ in range(MADE_AHEAD * workers + 1):
            step(next(fed))
        done, seconds = _timed_steps(step, lambda: next(fed), until=until)
        feed.close()  # type: ignore[attr-defined]  # a generator; ends the readers
    return LoaderRow(
        batch=count, workers=workers, cores=cores(), alone=alone, fed=done * count / seconds
    )


def _timed_steps(step: Step, take: Callable[[], Batch], *, until: float) -> tuple[int, float]:
    """Make steps until a time, at least `STEPS`; return their number and seconds."""
    torch.cuda.synchronize()
    began, done = time.perf_counter(), 0
    while done < STEPS or (done < LOADER_STEPS and time.monotonic() < until):
        step(take())
        done += 1
    torch.cuda.synchronize()
    return done, time.perf_counter() - began


def _packed(folder: Path, *, at_least: int) -> Path:
    """Draw some JPEGs, link each under several names to have enough, and pack them re-encoded."""
    images = folder / "images"
    images.mkdir()
    draw_images(images)
    drawn = sorted(images.iterdir())
    for copy in range(1, -(-at_least // len(drawn))):
        for path in drawn:
            path.with_name(f"{path.stem}-{copy}.jpg").hardlink_to(path)
    pack(images, folder / "pack", form=Form(short_side=PACK_SIDE, quality=90), quiet=True)
    return folder / "pack"
