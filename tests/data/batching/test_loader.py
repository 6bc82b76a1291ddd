"""Batches are the same whoever makes them and wherever one begins."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from mae.config.model import PixelDtype
from mae.config.run import AugmentConfig
from mae.data.batching.batch import (
    Batch,
    BatchPlan,
    channels_first,
    evaluation_batch,
    training_batch,
)
from mae.data.batching.loader import batches, on_device
from mae.data.batching.shared_memory import SharedBatchPool
from mae.data.decoding.decode import PixelKind
from mae.data.sources.source import ArraySource, FolderSource, Source
from tests.images import mixed_folder
from tests.jobs.conftest import write_classes

COLOUR = PixelKind("uint8", 3)


def folder_plan(root: Path, **changes: object) -> BatchPlan:
    return plan_of(FolderSource(root), **changes)


def plan_of(source: Source, **changes: object) -> BatchPlan:
    fields: dict[str, object] = {
        "source": source,
        "kind": COLOUR,
        "size": (12, 20),
        "grid": (3, 5),
        "augment": AugmentConfig(),
        "batch": 4,
        "seed": 9,
    }
    return BatchPlan(**(fields | changes))  # type: ignore[arg-type]


def same(a: Batch, b: Batch) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a[:4], b[:4], strict=True)) and a.bad == b.bad


@pytest.mark.slow
def test_a_batch_that_is_held_does_not_change_while_others_come(tmp_path: Path) -> None:
    mixed_folder(tmp_path, count=20, broken=1)
    plan = folder_plan(tmp_path)
    held = {}

    for step, batch in enumerate(batches(plan, start=0, stop=24, workers=1)):
        if step % 5 == 0:
            held[step] = batch.images[1:3, :, 4:].permute(0, 2, 3, 1)
        del batch

    assert len(held) == 5
    for step, part in held.items():
        there = training_batch(plan, step).images[1:3, :, 4:].permute(0, 2, 3, 1)
        assert torch.equal(part, there)


def test_a_slot_is_used_again_once_nothing_holds_its_batch() -> None:
    slots = SharedBatchPool(plan_of(Endless()), count=1)
    slot = slots.take()
    assert slot == 0 and slots.take() is None

    images = channels_first(slots.lend(slot))
    part = images[1:3, :, 2:].permute(0, 2, 3, 1).numpy()
    del images
    assert slots.take() is None

    del part
    assert slots.take() == slot


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_a_batch_in_a_slot_has_the_bits_of_one_in_memory_of_its_own(dtype: PixelDtype) -> None:
    samples = np.random.default_rng(0).random((16, 40, 50, 3))
    scale = {"uint8": 255, "uint16": 65535, "float32": 1}[dtype]
    source = ArraySource((samples * scale).astype(dtype))
    plan = plan_of(source, kind=PixelKind(dtype, 3))
    slots = SharedBatchPool(plan, count=3)

    rooms = [training_batch(plan, step, room=slots.room(step)) for step in range(3)]

    for step, batch in enumerate(rooms):
        assert same(batch, training_batch(plan, step))
        assert np.shares_memory(batch.images.numpy(), slots.room(step))


def test_small_images_are_moved_into_their_slot() -> None:
    samples = np.random.default_rng(0).integers(0, 256, (16, 28, 28, 3), dtype=np.uint8)
    plan = plan_of(ArraySource(samples))
    slots = SharedBatchPool(plan, count=1)

    batch = training_batch(plan, 1, room=slots.room(0))

    assert same(batch, training_batch(plan, 1))
    assert np.shares_memory(batch.images.numpy(), slots.room(0))


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_worker_counts_do_not_change_a_bit(tmp_path: Path, workers: int) -> None:
    mixed_folder(tmp_path, count=20, broken=1)
    plan = folder_plan(tmp_path)

    here = list(batches(plan, start=3, stop=19, workers=0))
    there = list(batches(plan, start=3, stop=19, workers=workers))  # more than there are slots

    assert len(here) == 16
    assert all(same(a, b) for a, b in zip(here, there, strict=True))


def test_the_global_generator_is_never_drawn_from(tmp_path: Path) -> None:
    mixed_folder(tmp_path, count=20, broken=1)
    before = torch.get_rng_state()

    list(batches(folder_plan(tmp_path), start=0, stop=2, workers=0))

    assert torch.equal(torch.get_rng_state(), before)


def test_an_epoch_gives_each_image_once_and_drops_the_remainder() -> None:
    source = ArraySource(np.zeros((14, 28, 28, 1), dtype=np.uint8))
    plan = BatchPlan(source=source, kind=PixelKind("uint8", 1), size=(28, 28), grid=(7, 7),
                     augment=AugmentConfig(), batch=4, seed=0)  # fmt: skip

    ids = torch.cat([training_batch(plan, step).ids for step in range(3)])

    assert plan.batches_per_epoch == 3
    assert len(set(ids.tolist())) == 12


def test_a_broken_image_is_replaced_by_the_same_other_one_and_named(tmp_path: Path) -> None:
    broken = mixed_folder(tmp_path, count=20, broken=2)
    plan = folder_plan(tmp_path, batch=20)

    first, second = training_batch(plan, 0), training_batch(plan, 0)

    assert {bad.name for bad in first.bad} >= set(broken)
    assert same(first, second)
    assert first.images.shape == (20, 3, 12, 20)


def test_a_replacement_keeps_the_crop_and_mask_of_the_sample_it_stands_for(tmp_path: Path) -> None:
    mixed_folder(tmp_path, count=20, broken=2)
    plan = folder_plan(tmp_path, batch=20)

    batch = training_batch(plan, 0)

    alone = training_batch(folder_plan(tmp_path, batch=1), 7)
    place = batch.ids.tolist().index(int(alone.ids))
    assert torch.equal(batch.noise[place], alone.noise[0])


def test_labels_follow_the_samples() -> None:
    labels = np.arange(10)
    source = ArraySource(
        np.zeros((10, 8, 8), dtype=np.uint8), labels=labels, class_names=("a",) * 10
    )
    plan = BatchPlan(source=source, kind=PixelKind("uint8", 1), size=(8, 8), grid=(2, 2),
                     augment=AugmentConfig(), batch=5, seed=0)  # fmt: skip

    batch = training_batch(plan, 1)

    assert torch.equal(batch.labels, batch.ids)


def test_flips_mirror_half_of_the_images() -> None:
    ramp = np.broadcast_to(np.arange(8, dtype=np.uint8), (400, 8, 8))
    plan = BatchPlan(source=ArraySource(ramp.copy()), kind=PixelKind("uint8", 1), size=(8, 8),
                     grid=(2, 2), augment=AugmentConfig(crop_scale=(1, 1)), batch=400,
                     seed=0)  # fmt: skip

    first_columns = training_batch(plan, 0).images[:, 0, 0, 0]

    assert set(first_columns.tolist()) == {0, 7}
    assert 150 < int((first_columns == 7).sum()) < 250


def test_evaluation_leaves_broken_images_out_and_says_so(tmp_path: Path) -> None:
    broken = mixed_folder(tmp_path, count=20, broken=2)
    source = FolderSource(tmp_path)

    view = evaluation_batch(source, range(20), kind=COLOUR, size=(12, 20))

    assert {bad.name for bad in view.bad} == set(broken)
    assert len(view.images) == len(view.ids) == 18
    assert not set(view.ids.tolist()) & {bad.id for bad in view.bad}


def test_a_replacement_brings_its_own_class(tmp_path: Path) -> None:
    write_classes(tmp_path / "d", "a", "b", count=4)
    for path in (tmp_path / "d" / "a").iterdir():
        path.write_bytes(b"nothing")

    batch = training_batch(folder_plan(tmp_path / "d", batch=8), 0)

    assert sorted(batch.ids.tolist()) == list(range(8)) and len(batch.bad) >= 4
    assert batch.labels.tolist() == [1] * 8


class Endless:
    """A source of 10^9 drawn images."""

    labels = None
    class_names = ()

    def __len__(self) -> int:
        return 10**9

    def read(self, index: int) -> np.ndarray:
        return np.full((9, 11, 3), index % 251, dtype=np.uint8)

    def name(self, index: int) -> str:
        return str(index)

    def fingerprint(self) -> str:
        return ""


def test_a_resume_at_any_position_continues_with_the_batch_that_would_have_come(
    tmp_path: Path,
) -> None:
    mixed_folder(tmp_path, count=20, broken=2)
    plan = folder_plan(tmp_path, batch=3, views_per_decode=3)
    undisturbed = list(batches(plan, start=0, stop=60, workers=0))

    for step in np.random.default_rng(0).choice(60, 20, replace=False).tolist():
        resumed = next(batches(plan, start=step, stop=60, workers=0))
        assert same(resumed, undisturbed[step])


def test_a_resume_among_a_billion_images_takes_no_time() -> None:
    plan = plan_of(Endless(), batch=8)
    last = 400 * plan.batches_per_epoch

    for step in np.random.default_rng(0).integers(0, last, 20).tolist():
        began = time.process_time()
        batch = next(batches(plan, start=step, stop=last, workers=0))

        assert time.process_time() - began < 1
        assert same(batch, training_batch(plan, step))
        assert batch.ids.max() < 10**9 and len(set(batch.ids.tolist())) == 8


def epochs_of(plan: BatchPlan, epochs: int) -> dict[tuple[object, ...], Tensor]:
    """Give the crop of each sample and mask."""
    made = [training_batch(plan, step) for step in range(epochs * plan.batches_per_epoch)]
    return {
        (int(index), *noise.tolist()): image
        for batch in made
        for index, noise, image in zip(batch.ids, batch.noise, batch.images, strict=True)
    }


UNCLOSED = """
import sys
import numpy as np
from mae.data.decoding.decode import PixelKind
from mae.data.batching.loader import batches
from mae.data.sources.source import ArraySource
from mae.train.resolve import batch_plan
from mae.recipes.catalogue import DEMO

if __name__ == "__main__":
    source = ArraySource(np.zeros((640, 28, 28, 1), np.uint8))
    feed = batches(batch_plan(DEMO, source, PixelKind("uint8", 1)), start=0, stop=10, workers=2)
    next(feed)
    sys.exit(3)
"""


@pytest.mark.slow
def test_a_feed_that_nobody_closes_holds_up_no_exit(tmp_path: Path) -> None:
    script = tmp_path / "unclosed.py"
    script.write_text(UNCLOSED)

    command = [sys.executable, str(script)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)

    assert (done.returncode, done.stdout) == (3, "")
    # A busy machine may end the thread that frees a semaphore between two lines of Python's own.
    assert "Traceback" not in done.stderr and "terminate" not in done.stderr, done.stderr


@pytest.mark.parametrize("views", [2, 4])
def test_several_views_are_those_of_as_many_epochs_in_another_order(views: int) -> None:
    samples = np.random.default_rng(0).integers(0, 256, (16, 40, 50, 3), dtype=np.uint8)
    source = ArraySource(samples)

    once = epochs_of(plan_of(source, batch=8), 8)
    several = epochs_of(plan_of(source, batch=8, views_per_decode=views), 8)

    assert len(once) == 8 * 16 and once.keys() == several.keys()
    assert all(torch.equal(once[key], several[key]) for key in once)


def test_a_batch_of_several_views_decodes_each_of_its_images_once(tmp_path: Path) -> None:
    mixed_folder(tmp_path, count=20, broken=0)
    plan = folder_plan(tmp_path, batch=12, views_per_decode=3)
    source, reads = FolderSource(tmp_path), list[int]()
    plan = replace(plan, source=source)
    source.read = lambda index: reads.append(index) or FolderSource.read(source, index)  # type: ignore

    batch = training_batch(plan, 0)

    assert len(reads) == 4 and batch.ids.tolist() == reads * 3
    assert len({tuple(noise.tolist()) for noise in batch.noise}) == 12


def test_small_images_in_memory_are_shown_several_times_as_well() -> None:
    samples = np.random.default_rng(0).integers(0, 256, (16, 28, 28, 3), dtype=np.uint8)
    source = ArraySource(samples)

    once = epochs_of(plan_of(source, batch=8), 4)
    several = epochs_of(plan_of(source, batch=8, views_per_decode=4), 4)

    assert len(once) == 4 * 16 and once.keys() == several.keys()
    assert all(torch.equal(once[key], several[key]) for key in once)


def test_batches_stay_where_they_are_on_a_cpu() -> None:
    plan = plan_of(Endless())
    made = list(batches(plan, start=5, stop=8, workers=0))

    assert all(a is b for a, b in zip(on_device(made, torch.device("cpu")), made, strict=True))
