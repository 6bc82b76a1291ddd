"""What follows from machine and images is settled before the first step."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mae.config.run import FinetuneConfig, PretrainConfig
from mae.data.batching.batch import training_batch
from mae.data.decoding.decode import PixelKind
from mae.data.sources.source import ArraySource, FolderSource
from mae.errors import ConfigError
from mae.model.classifier import Classifier
from mae.model.create import create
from mae.model.normalize import normalize_pixels
from mae.model.patches import patchify
from mae.parallel.processes import ProcessInfo
from mae.planning import hardware as machines
from mae.planning.hardware import cores_per_rank, has_bf16, this_machine
from mae.train import resolve as setup
from mae.train import strategy
from mae.train import workers as worker_count
from mae.train.resolve import batch_plan, new_state, resolve, resolve_precision
from mae.train.strategy import claim_device
from mae.train.workers import choose_workers
from tests.images import mixed_folder
from tests.model.tiny import tiny_config

CPU, GPU = torch.device("cpu"), torch.device("cuda")
AUTO = PretrainConfig(batch=8)


@pytest.fixture
def folder(tmp_path: Path) -> FolderSource:
    mixed_folder(tmp_path, count=9, broken=0)
    return FolderSource(tmp_path)


def test_workers_are_one_a_core_where_a_gpu_trains(
    folder: FolderSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = batch_plan(AUTO, folder, PixelKind("uint8", 3))
    monkeypatch.setattr("mae.planning.hardware.cores", lambda: 5)
    monkeypatch.setattr(worker_count, "_room_for_batches", lambda: 2**40)

    assert choose_workers(AUTO, plan, GPU, log=str) == 5
    assert choose_workers(AUTO, plan, CPU, log=str) == 0
    assert choose_workers(replace(AUTO, workers=3), plan, CPU, log=str) == 3


def test_workers_are_few_where_batches_are_larger_than_memory(
    folder: FolderSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = batch_plan(replace(AUTO, batch=4096), folder, PixelKind("uint8", 3))
    monkeypatch.setattr("mae.planning.hardware.cores", lambda: 64)

    assert plan.batch_bytes == 4096 * 224 * 224 * 3
    for gigabytes, workers in ((64, 16), (4, 3), (0.06, 1)):
        monkeypatch.setattr(worker_count, "_room_for_batches", lambda room=gigabytes: room * 1e9)
        assert choose_workers(AUTO, plan, GPU, log=str) == workers


def test_ranks_of_a_machine_divide_its_cores_and_memory(
    folder: FolderSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mae.planning.hardware.cores", lambda: 9)
    monkeypatch.setattr(worker_count, "_room_for_batches", lambda: 2**40)
    second = ProcessInfo(rank=1, world_size=4, local_rank=1, local_world_size=2)
    plan = batch_plan(AUTO, folder, PixelKind("uint8", 3), second)

    assert choose_workers(AUTO, plan, GPU, log=str, process=second) == 4
    monkeypatch.setattr(worker_count, "_room_for_batches", lambda: 8 * plan.batch_bytes)
    assert choose_workers(AUTO, plan, GPU, log=str, process=second) == 2  # each makes 2 ahead


def test_each_rank_of_a_machine_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[int] = []
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("torch.cuda.set_device", chosen.append)
    ranks = [ProcessInfo(rank, 3, rank, 3) for rank in range(3)]

    for process in ranks[:2]:
        claim_device(AUTO, process)
    claim_device(replace(AUTO, device="cpu"), ranks[2])
    claim_device(AUTO, ProcessInfo())

    assert chosen == [0, 1]
    with pytest.raises(
        ConfigError, match="^ranks: got 3 on a machine of 2 GPUs, expected one each"
    ):
        claim_device(AUTO, ranks[2])
    monkeypatch.setattr(strategy, "choose_device", torch.device)
    for device in ("mps", "cuda:1"):
        with pytest.raises(ConfigError, match=f"^device: got {device} with 3 ranks, expected cpu"):
            claim_device(replace(AUTO, device=device), ranks[0])


def test_a_task_of_slurm_may_see_its_own_gpu_alone_and_its_own_cores(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chosen: list[int] = []
    monkeypatch.setenv("MAE_SLURM", "1")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.set_device", chosen.append)
    monkeypatch.setattr("mae.planning.hardware.cores", lambda: 24)
    third = ProcessInfo(11, 16, 3, 8)

    for count in (1, 8):
        monkeypatch.setattr("torch.cuda.device_count", lambda count=count: count)
        claim_device(AUTO, third)

    assert chosen == [0, 3]
    assert cores_per_rank(third) == 3  # of a node that all tasks see whole
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "12")
    assert cores_per_rank(third) == 12
    monkeypatch.setattr("mae.planning.hardware.cores", lambda: 10)  # fewer were given
    assert cores_per_rank(third) == 10


def test_no_worker_reads_what_is_in_memory() -> None:
    source = ArraySource(np.zeros((9, 28, 28), dtype=np.uint8))

    assert choose_workers(AUTO, batch_plan(AUTO, source, PixelKind("uint8", 1)), GPU, log=str) == 0


@pytest.mark.parametrize(
    ("asked", "has_bf16", "begun", "chosen"),
    [
        ("auto", True, None, "bf16"),
        ("auto", False, None, "float32"),
        ("auto", True, "float32", "float32"),
        ("auto", False, "bf16", "bf16"),
        ("auto", True, "fp16", "fp16"),
        ("float32", True, "bf16", "float32"),
        ("fp16", False, None, "fp16"),
    ],
)
def test_the_precision_is_the_one_asked_for_or_begun_with_or_the_devices(
    asked: str, *, has_bf16: bool, begun: str | None, chosen: str
) -> None:
    record = None if begun is None else {"config": {"precision": begun}}

    precision = resolve_precision(asked, has_bf16=has_bf16, begun=record)  # type: ignore[arg-type]

    assert precision == chosen
    assert PretrainConfig(precision=precision).half == (None if chosen == "float32" else chosen)


@pytest.mark.parametrize("own", [True, False])
def test_auto_takes_bf16_on_a_processor_that_has_it(
    folder: FolderSource, monkeypatch: pytest.MonkeyPatch, *, own: bool
) -> None:
    monkeypatch.setattr(machines, "multiplies_bf16", lambda: own)
    config = PretrainConfig(batch=8, device="cpu")

    assert has_bf16(CPU) == this_machine("cpu").has_bf16 == own
    assert config.precision == "auto" and config.half is None
    assert resolve(config, folder).config.precision == ("bf16" if own else "float32")


@pytest.mark.parametrize("emulated", [True, False])
def test_bf16_that_a_processor_emulates_is_noted(
    folder: FolderSource, monkeypatch: pytest.MonkeyPatch, *, emulated: bool
) -> None:
    monkeypatch.setattr(setup, "emulates_bf16", lambda: emulated)
    config = PretrainConfig(batch=8, device="cpu", precision="bf16")

    notes = resolve(config, folder).notes

    assert notes == (
        ("precision: this processor emulates bf16, slower than float32; use --precision float32",)
        if emulated
        else ()
    )


@pytest.mark.parametrize("every", [None, 3])
def test_every_block_is_told_what_it_keeps(every: int | None) -> None:
    model = create(tiny_config())

    new_state(model, PretrainConfig(device="cpu", checkpoint_every=every))
    classifier = Classifier(create(tiny_config()).encoder, num_classes=4)
    new_state(classifier, FinetuneConfig(device="cpu", checkpoint_every=every))

    told = (model.encoder, model.decoder, classifier.encoder)
    assert [part.blocks.checkpoint_every for part in told] == [every] * 3
    assert model.state_dict().keys() == create(tiny_config()).state_dict().keys()


def test_images_lie_channels_last_until_they_are_cut_into_patches(folder: FolderSource) -> None:
    config = PretrainConfig(model=tiny_config(), batch=5)
    kind = PixelKind("uint8", 3)
    rows = ArraySource(np.random.default_rng(0).integers(0, 256, (9, 20, 31, 3), dtype=np.uint8))

    for source in (folder, rows):
        made = training_batch(batch_plan(config, source, kind), 0)
        images = normalize_pixels(next(made.split(3)).images, config.model.pixels)

        assert images.is_contiguous(memory_format=torch.channels_last)
        assert patchify(images, patch_size=4).is_contiguous()


def test_a_batch_of_several_views_is_lowered_to_a_multiple_of_them(folder: FolderSource) -> None:
    resolved = resolve(PretrainConfig(batch=16, views_per_decode=4), folder)

    assert resolved.config.batch == 8
    assert resolved.notes == ("batch: lowered from 16 to 8; there are 9 images",)


def test_views_that_do_not_divide_the_batch_are_refused() -> None:
    with pytest.raises(ConfigError, match="views_per_decode: expected at least 1 that divides"):
        PretrainConfig(batch=16, views_per_decode=3)


def test_views_of_images_in_memory_are_said_to_save_nothing() -> None:
    source = ArraySource(np.random.default_rng(0).integers(0, 256, (9, 28, 28, 3), dtype=np.uint8))

    resolved = resolve(PretrainConfig(batch=8, views_per_decode=4), source)

    assert any("views_per_decode" in line for line in resolved.notes)


@pytest.mark.parametrize(
    ("text", "cores"), [("150000 100000\n", 2), ("50000 100000\n", 1), ("max 100000\n", 6), ("", 6)]
)
def test_cores_are_those_that_a_container_allows(
    text: str, cores: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpu.max").write_text(text)
    real = machines._quota
    monkeypatch.setattr(machines, "_quota", lambda folder: real(tmp_path))
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(6)), raising=False)

    assert machines.cores() == cores
