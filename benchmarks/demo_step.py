"""Step and loader together at the demo's size, against a textbook loop over the same arrays.

`python -m benchmarks.demo_step [PAIRS]` runs both sides in float32 in one process, in turn, and
prints the paired ratio of their times with its spread, the loader's share of our time and the
profile of our step.
"""

from __future__ import annotations

import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch._C._profiler import _ExperimentalConfig
from torch.profiler import ProfilerActivity, profile

from benchmarks.processor import print_processor
from benchmarks.spread import Spread
from benchmarks.textbook import Images, TextbookMAE, textbook_batches
from mae.config.run import PixelConfig
from mae.data.batching.batch import training_batch
from mae.data.decoding.decode import PixelKind
from mae.data.sources.fashion_mnist import fashion_mnist
from mae.data.survey import measure_pixels
from mae.model.create import create
from mae.recipes.catalogue import DEMO
from mae.train.resolve import batch_plan, new_state
from mae.train.step import OptimiserStep, pretraining_loss

STEPS = 60  # of each side in a pair
RATE = 1e-3
SETTINGS = (
    f"ours: float32, the demo's recipe with fused AdamW in place of Muon, {DEMO.micro_batch} "
    f"images a pass, passes side by side\ntextbook loop: float32, torch.optim.AdamW by its "
    f"defaults, one pass; both: {DEMO.batch} images a step"
)


def our_side() -> Callable[[], float]:
    """Return a function that makes STEPS steps and returns the loader's seconds."""
    source, kind = fashion_mnist("train"), PixelKind("uint8", 1)
    mean, std = measure_pixels(source, kind=kind)
    # AdamW as in the textbook loop: benchmarks.time_to_score measures what Muon costs and gains.
    adamw = replace(DEMO, precision="float32", optim=replace(DEMO.optim, name="adamw"))
    model = replace(adamw.model, pixels=PixelConfig(mean=mean, std=std))
    config = replace(adamw, model=model)
    plan = batch_plan(config, source, kind)
    state = new_state(create(config.model), config)
    step = OptimiserStep(loss=pretraining_loss, config=config, device=torch.device("cpu"))
    numbers = itertools.count()

    def run() -> float:
        waited = 0.0
        with step.side_by_side():
            for number in itertools.islice(numbers, STEPS):
                began = time.perf_counter()
                batch = training_batch(plan, number)
                waited += time.perf_counter() - began
                step(state, batch, lr=RATE)
        return waited

    return run


def textbook_side(workers: int) -> Callable[[], None]:
    """Return a function that makes STEPS steps as a textbook would."""
    source, kind = fashion_mnist("train"), PixelKind("uint8", 1)
    (mean,), (std,) = measure_pixels(source, kind=kind)
    dataset = Images(source.images, mean=mean, std=std)
    batches: Iterator[torch.Tensor] = textbook_batches(dataset, batch=DEMO.batch, workers=workers)
    model = TextbookMAE(DEMO.model)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=RATE, betas=DEMO.optim.betas, weight_decay=DEMO.optim.weight_decay
    )

    def run() -> None:
        for _ in range(STEPS):
            images = next(batches)
            loss = model(images, torch.rand(len(images), DEMO.model.num_patches))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if not torch.isfinite(loss):
                raise RuntimeError("the loss is not finite")

    return run


def seconds(run: Callable[[], object]) -> float:
    """Time one call."""
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def main(pairs: int) -> None:
    """Run the pairs and print the figures."""
    processor = print_processor()
    print(SETTINGS, flush=True)
    ours = our_side()
    sides = {workers: textbook_side(workers) for workers in (0, 2)}
    for run in (ours, *sides.values()):
        run()  # the first steps allocate and start workers
    ratios: dict[int, list[float]] = {workers: [] for workers in sides}
    shares, rates = [], []
    for _ in range(pairs):
        for workers, theirs in sides.items():
            began = time.perf_counter()
            waited = ours()
            own = time.perf_counter() - began
            shares.append(waited / own)
            rates.append(STEPS * DEMO.batch / own)
            ratios[workers].append(seconds(theirs) / own)
    # The better of its two settings is the peer, pair by pair.
    best = [min(pair) for pair in zip(*ratios.values(), strict=True)]
    rate, share = Spread.of(rates).written(0), Spread.of(shares).written(3)
    print(f"ours: {rate} images/s; loader's share of the time: {share}")
    for workers, values in ratios.items():
        print(f"textbook loop, {workers} workers: {Spread.of(values).written()} times our time")
    better = Spread.of(best).written()
    print(f"textbook loop, the better of both: {better} times our time, {pairs} pairs")
    every = _ExperimentalConfig(profile_all_threads=True)  # those of micro-batches as well
    with profile(activities=[ProfilerActivity.CPU], experimental_config=every) as profiled:
        ours()
    table = profiled.key_averages().table(
        sort_by="self_cpu_time_total", row_limit=12, max_name_column_width=40
    )
    print(table)
    medians = {"ratio": statistics.median(best), "loader_share": statistics.median(shares)}
    print(json.dumps({"processor": processor, "settings": SETTINGS, **medians}))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 12)
