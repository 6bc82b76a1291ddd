"""The benchmark of a run tells the loader from the step, and advises what follows from it."""

from __future__ import annotations

import dataclasses
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from mae.config.objective import ObjectiveConfig
from mae.config.run import PretrainConfig
from mae.data.sources.source import ArraySource
from mae.errors import ConfigError
from mae.jobs import bench as module
from mae.jobs.bench import BottleneckReport, bench_run
from mae.model.costs import step_flops
from mae.planning.estimate import Estimate
from mae.planning.hardware import Machine, use_threads
from mae.recipes.catalogue import DEMO
from mae.train import measure as setup
from mae.train.measure import Measurement, few_images
from tests.images import encoded, mixed_folder, photo
from tests.jobs.conftest import TINY

CONFIG = PretrainConfig(model=TINY, batch=6, micro_batch=3, device="cpu", epochs=2)


class SlowSource(ArraySource):
    """Images that come from far away: each is waited for, and no processor works meanwhile."""

    def __init__(self, count: int, *, wait: float = 0.02) -> None:
        super().__init__(np.stack([photo(24, 40, seed=seed) for seed in range(count)]))
        self.wait = wait

    def read(self, index: int) -> NDArray[np.generic]:
        time.sleep(self.wait)
        return super().read(index)


def write_jpegs(root: Path, *, count: int) -> Path:
    for seed in range(count):
        image = Image.fromarray(photo(48, 64, seed=seed))
        (root / f"{seed}.jpg").write_bytes(encoded(image, "JPEG"))
    return root


def judged(
    *, device: str = "cpu", cores: int, monkeypatch: pytest.MonkeyPatch, **given: Any
) -> BottleneckReport:
    """Give a report of made-up figures on a made-up machine."""
    monkeypatch.setattr(module, "cores", lambda: cores)
    config = given.pop("config", dataclasses.replace(DEMO, batch=64, epochs=20))
    machine = Machine("made up", 1, device, given.pop("memory", 2**34))
    spent, busy = given.pop("reading", (0.001, 0.001))
    estimate = Estimate(config, machine, 6400, 10, 0, given["both"], "here", "demo")
    usual = {"images_per_step": 64, "workers": 0, "threads": 1, "unreadable": 0}
    usual |= {"reader_seconds_per_image": spent, "reader_busy_seconds_per_image": busy}
    measured = Measurement(**usual | {"others_waiting": 0.0} | given)
    return BottleneckReport(estimate, measured, in_memory=False)


def test_a_folder_of_jpegs_is_measured_whole_and_leaves_nothing_behind(tmp_path: Path) -> None:
    write_jpegs(tmp_path, count=13)
    threads = torch.get_num_threads()

    found = bench_run(tmp_path, dataclasses.replace(CONFIG, threads=1), seconds=0.06, quiet=True)

    measured = found.measured
    assert min(measured.loader, measured.step, measured.both) > 0
    assert measured.both < measured.loader
    assert found.estimate.steps == 4  # two epochs of two batches of six
    assert found.estimate.images_per_second == measured.both and measured.threads == 1
    assert (measured.images_per_step, measured.workers, measured.unreadable) == (6, 0, 0)
    assert torch.get_num_threads() == threads
    assert len(list(tmp_path.iterdir())) == 13


def test_images_that_are_waited_for_make_the_loader_the_wall_and_workers_the_advice() -> None:
    # Far more than a step takes, on a busy machine as well.
    found = bench_run(SlowSource(12, wait=0.1), CONFIG, seconds=1.5, quiet=True)

    assert found.bottleneck == "loader"
    assert 2 < found.measured.loader <= 10  # 100 ms an image
    assert found.waiting > 0.5
    assert found.verdict.startswith("the loader is the bottleneck: the loader makes 0.")
    (advice,) = found.advice()
    assert advice.startswith(
        f"use --workers {found.readers_needed}, or mae data pack to a near disk: an image takes a "
        "reader 1"
    )
    assert advice.endswith("of them waiting for the source")


@pytest.mark.slow
def test_images_in_memory_make_the_step_the_wall() -> None:
    found = bench_run(
        "fashion-mnist", dataclasses.replace(DEMO, device="cpu"), seconds=0.3, quiet=True
    )

    assert found.bottleneck == "step"
    assert found.measured.loader > 5 * found.measured.step
    assert "the step is the bottleneck: the loader makes" in found.verdict


def test_a_large_batch_of_a_cpu_is_measured_on_few_images(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(setup, "_STEP_FLOPS", 8.5 * step_flops(TINY, ObjectiveConfig()))
    images = np.random.default_rng(0).integers(0, 256, (400, 24, 40, 3), dtype=np.uint8)
    config = dataclasses.replace(CONFIG, batch=320, micro_batch=160, epochs=3, threads=2)

    found = bench_run(images, config, seconds=0.06, quiet=True)

    assert found.measured.images_per_step == 8
    assert found.estimate.config.batch == 320 and found.estimate.steps == 3
    assert any("3 steps, 3 epochs" in line and "weighs more" in line for (line, *_) in found.rows())


def test_few_images_keep_as_many_micro_batches_side_by_side_as_the_batch_has(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(setup, "_STEP_FLOPS", 11 * step_flops(TINY, ObjectiveConfig()))
    config = dataclasses.replace(CONFIG, batch=320, micro_batch=160, views_per_decode=4)

    with use_threads(2):
        few = few_images(config, torch.device("cpu"))

    assert (few.batch, few.micro_batch) == (8, 4)  # whole images of four views
    assert few_images(config, torch.device("cuda")) == config


@pytest.mark.slow
def test_readers_feed_the_step_and_what_they_made_ahead_does_not_count() -> None:
    config = dataclasses.replace(CONFIG, workers=2)

    found = bench_run(SlowSource(12), config, seconds=0.9, quiet=True)

    # Two processes at 20 ms an image make 100 a second, fewer on a busy machine. In the time of a
    # slice they make 15, and 24 lie there made ahead.
    assert found.measured.workers == 2
    assert 20 < found.measured.loader < 120


def test_broken_images_are_counted(tmp_path: Path) -> None:
    mixed_folder(tmp_path, count=24, broken=2)

    found = bench_run(tmp_path, CONFIG, seconds=0.06, quiet=True)

    assert found.measured.unreadable == 2
    assert ("2 images could not be read; others replaced them",) in [*found.rows()]


def test_the_time_of_the_run_is_that_of_both_together(monkeypatch: pytest.MonkeyPatch) -> None:
    found = judged(loader=400.0, step=60.0, both=50.0, cores=1, monkeypatch=monkeypatch)

    assert found.estimate.steps == 2000  # 20 epochs of 100 batches
    assert found.values()["hours"] == pytest.approx(2000 * 64 / 50 / 3600)
    line = "the whole run here: about 43 minutes: 2,000 steps, 20 epochs"
    assert any(line in row[0] for row in found.rows())


def test_decoding_for_a_gpu_asks_for_as_many_workers_as_keep_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slow = {"loader": 700.0, "step": 3000.0, "both": 690.0, "reading": (0.0014, 0.0014)}

    found = judged(device="cuda", cores=16, workers=1, monkeypatch=monkeypatch, **slow)

    assert next(found.advice()) == ("use --workers 5: an image takes a reader 1.4 ms")


def test_readers_that_should_keep_up_and_do_not_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    slow = {"loader": 700.0, "step": 3000.0, "both": 690.0, "reading": (0.0014, 0.0014)}

    found = judged(device="cuda", cores=16, workers=6, monkeypatch=monkeypatch, **slow)

    assert (
        next(found.advice()) == "5 workers should keep up: mae bench data shows which stage is slow"
    )


def test_decoding_that_has_no_core_left_asks_for_cheaper_images(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slow = {"loader": 700.0, "step": 3000.0, "both": 500.0, "reading": (0.0014, 0.0014)}

    found = judged(cores=2, threads=2, monkeypatch=monkeypatch, **slow)

    assert next(found.advice()) == (
        "use mae data pack --short-side 32 or --augment.scaled-decode or --views-per-decode 2: "
        "loading needs 4.2 cores, 0 are free"
    )


def test_a_pass_that_does_not_fit_asks_for_one_that_does(monkeypatch: pytest.MonkeyPatch) -> None:
    config = dataclasses.replace(DEMO, batch=4096, micro_batch=None)

    found = judged(
        loader=900.0, step=5.0, both=4.9, cores=1, config=config, memory=2**30,
        monkeypatch=monkeypatch,
    )  # fmt: skip

    largest = found.estimate.largest_micro_batch
    assert 0 < largest < 4096
    assert [*found.advice()] == [
        f"4,096 images a pass do not fit (formula): use --micro-batch {largest}"
    ]


def test_threads_fewer_than_cores_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    found = judged(loader=900.0, step=5.0, both=5.0, cores=8, threads=2, monkeypatch=monkeypatch)

    assert [*found.advice()] == ["the step has 2 of 8 cores: use --threads 8"]


def test_sides_that_disturb_each_other_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    crowded = {"loader": 900.0, "step": 100.0, "both": 60.0, "workers": 3}

    found = judged(cores=2, threads=2, monkeypatch=monkeypatch, **crowded)

    assert [*found.advice()][-1] == (
        "together they make 60% of the undisturbed rate: 3 readers and 2 threads share 2 cores"
    )


def test_a_busy_machine_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    found = judged(
        loader=900.0, step=5.0, both=5.0, cores=1, others_waiting=2.5, monkeypatch=monkeypatch
    )

    assert ("machine busy: load 2.5 per core, so this estimate is too slow",) in [*found.rows()]


@pytest.mark.parametrize("seconds", [0.0, -1.0, math.inf])
def test_a_time_of_nothing_is_refused(seconds: float) -> None:
    with pytest.raises(ConfigError, match="seconds: expected a number above 0, got"):
        bench_run(SlowSource(12), CONFIG, seconds=seconds, quiet=True)


def test_weights_that_change_no_speed_are_refused(weights: Path) -> None:
    with pytest.raises(ConfigError, match="init: has no effect on the speed of folder; drop it"):
        bench_run(SlowSource(12), CONFIG, recipe="folder", init=weights, quiet=True)


def test_the_network_comes_from_weights_where_the_recipe_says_so(weights: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (20, 30, 44, 3), dtype=np.uint8)
    config = PretrainConfig(follow_weights=True, batch=4, device="cpu")

    found = bench_run(images, config, init=weights, seconds=0.06, quiet=True)

    assert found.estimate.config.model.width == TINY.width
