"""What each sample is shown as: the same on any number of ranks, readers and micro-batches."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch

from mae.config.run import AugmentConfig, FinetuneConfig, MixConfig
from mae.data.batching.batch import Batch, BatchPlan
from mae.data.batching.loader import batches
from mae.data.decoding.decode import PixelKind
from mae.data.sources.source import ArraySource
from mae.train.finetune_batch import finetune_batch
from tests.chaos.bench import IMAGES, MODEL, Bench, images
from tests.chaos.harness import Trial

CONFIG = FinetuneConfig(
    model=MODEL, batch=16, num_classes=4, erase=0.5, mix=MixConfig(mixup=0.8, cutmix=1.0)
)
STEPS = 2 * (IMAGES // CONFIG.batch)
RANKS, WORKERS = (1, 2, 3, 4), (0, 1, 4)


def plan() -> BatchPlan:
    """Return the plan of batches with every kind of draw."""
    source = ArraySource(images(), labels=np.arange(IMAGES) % 4, class_names=tuple("abcd"))
    return BatchPlan(
        source=source, kind=PixelKind("uint8", 3), size=(16, 16), grid=(4, 4),
        augment=AugmentConfig(), batch=CONFIG.batch, seed=3, num_drops=4, mirrored=True,
    )  # fmt: skip


def inputs_of_ranks(bench: Bench, count: int) -> Iterator[Trial]:
    """Compare order, crop, flip, mask, drops and mixing partner of 1 to 4 ranks, 0 to 4 readers."""
    expected = ""
    micro_batches = (CONFIG.batch, 3)
    digests = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch: more readers than cores
        for ranks in RANKS:
            for workers in WORKERS:
                digests += [_digest(ranks, workers, micro_batches)]
    found = [(r, w, m) for r in RANKS for w in WORKERS for m in micro_batches]
    flat = [digest for each in digests for digest in each]
    for (ranks, workers, micro_batch), digest in list(zip(found, flat, strict=True))[:count]:
        expected = expected or digest
        where = f"{ranks} ranks, {workers} readers, micro-batch {micro_batch}"
        yield Trial("" if digest == expected else f"{where}: {digest[:16]}, not {expected[:16]}")
    bench.notes.append(f"digest {expected[:16]}")


def _digest(ranks: int, workers: int, micro_batches: tuple[int, ...]) -> list[str]:
    """Digest what all ranks make of two epochs, by step and id, for each micro-batch."""
    rows: list[dict[tuple[int, int], str]] = [{} for _ in micro_batches]
    for rank in range(ranks):
        own = replace(plan(), share=(rank, ranks))
        for step, batch in enumerate(batches(own, start=0, stop=STEPS, workers=workers)):
            whole = finetune_batch(batch, own, CONFIG, step=step, device=torch.device("cpu"))
            for size, found in zip(micro_batches, rows, strict=True):
                for part in whole.split(size):
                    found |= {(step, i): text for i, text in _samples(part)}
    assert all(len(found) == STEPS * CONFIG.batch for found in rows)
    return [hashlib.sha256(repr(sorted(f.items())).encode()).hexdigest() for f in rows]


def _samples(part: Batch) -> Iterator[tuple[int, str]]:
    """Yield id and digest of each sample of a batch."""
    tensors = [t for t in (part.images, part.noise, part.drops, part.targets) if t is not None]
    assert len(tensors) == 4
    for place, index in enumerate(part.ids.tolist()):
        content = b"".join(t[place].contiguous().numpy().tobytes() for t in tensors)
        yield index, hashlib.sha256(content).hexdigest()
