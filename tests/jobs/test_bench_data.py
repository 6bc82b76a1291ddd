"""The data benchmark tells stages apart and says which is the wall."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from mae.config.run import PretrainConfig
from mae.errors import ConfigError
from mae.jobs.bench_data import DataBench, bench_data
from tests.images import mixed_folder

CONFIG = PretrainConfig(batch=12, device="cpu")


def test_every_stage_of_files_is_timed_and_broken_ones_are_counted(tmp_path: Path) -> None:
    mixed_folder(tmp_path, count=24, broken=2)
    threads = torch.get_num_threads()
    whole = dataclasses.replace(CONFIG, batch=24)  # every image is in the first batch

    found = bench_data(tmp_path, whole, seconds=0.01, quiet=True)

    assert found.stages == ["read", "decode", "augment", "collate"]
    assert found.seconds.keys() == {*found.stages, "all together"}
    assert all(seconds > 0 for seconds in found.seconds.values())
    assert found.bottleneck in ("decode", "augment")
    assert found.unreadable == 2
    assert torch.get_num_threads() == threads


def test_images_in_memory_are_neither_read_nor_decoded() -> None:
    images = np.random.default_rng(0).integers(0, 256, (40, 28, 28, 3), dtype=np.uint8)

    found = bench_data(images, CONFIG, seconds=0.01, quiet=True)

    assert found.stages == ["augment", "collate"]


def test_cores_are_counted_for_the_rate_that_is_asked_for() -> None:
    seconds = {"read": 0.0001, "decode": 0.003, "all together": 0.004}
    found = DataBench(seconds, "cpu", {"asked for": 1001.0}, 0)

    assert found.bottleneck == "decode"
    assert found.values()["cores_needed"] == {"asked for": 5}
    assert found.values()["images_per_second"]["all together"] == 250


@pytest.mark.parametrize("name", ["seconds", "images_per_second"])
def test_a_rate_or_a_time_of_nothing_is_refused(name: str) -> None:
    images = np.zeros((40, 28, 28, 3), dtype=np.uint8)

    with pytest.raises(ConfigError, match=f"{name}: expected a number above 0, got 0"):
        bench_data(images, dataclasses.replace(CONFIG), quiet=True, **{name: 0.0})
