"""A billion images cost what a thousand do: a resume, a worker, memory."""

from __future__ import annotations

import pickle
import time
from pathlib import Path

import numpy as np
import torch
from benchmarks.scale import plan_of, sparse_pack, write_rows

from mae.data.batching.batch import training_batch
from mae.data.batching.loader import batches

COUNT = 10**9
BATCH = 64
STEPS = np.random.default_rng(3).integers(0, 50 * COUNT // BATCH, 20).tolist()


def test_a_billion_images_are_resumed_at_any_position_in_under_a_second(tmp_path: Path) -> None:
    source = sparse_pack(tmp_path, count=COUNT)
    for step in STEPS:
        write_rows(source, plan_of(source, batch=BATCH).batch_ids(step)[1])

    for step in STEPS:
        began = time.process_time()  # of the processor, since others may want the machine
        reopened = pickle.loads(pickle.dumps(source))
        found = next(batches(plan_of(reopened, batch=BATCH), start=step, stop=step + 1, workers=0))
        assert time.process_time() - began < 1

        assert torch.equal(found.images, training_batch(plan_of(source, batch=BATCH), step).images)
        assert not found.bad and len(set(found.ids.tolist())) == BATCH


def test_a_pack_of_a_billion_images_travels_as_its_paths(tmp_path: Path) -> None:
    source = sparse_pack(tmp_path, count=COUNT)

    assert len(source) == COUNT
    assert len(pickle.dumps(source)) < 1000
    assert (tmp_path / "index.safetensors").stat().st_blocks * 512 < 10**6
