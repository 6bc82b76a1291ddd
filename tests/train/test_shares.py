"""The inputs of a step are the same, however ranks, readers and micro-batches divide them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch

from mae.config.run import FinetuneConfig, MixConfig, PretrainConfig
from mae.data.batching.batch import Batch, BatchPlan
from mae.data.batching.loader import batches
from mae.data.decoding.decode import PixelKind
from mae.data.sources.source import ArraySource
from mae.errors import ConfigError
from mae.parallel.processes import ProcessInfo
from mae.train.finetune_batch import finetune_batch
from mae.train.resolve import _require_share_each, batch_plan
from tests.model.tiny import tiny_config

MODEL = tiny_config()
COUNT = 50
PRETRAIN = PretrainConfig(model=MODEL, batch=11)
VIEWS = replace(PRETRAIN, batch=12, views_per_decode=2)
FINETUNE = FinetuneConfig(
    model=MODEL,
    num_classes=5,
    batch=9,  # whose middle image is its own partner
    drop_path=0.4,
    erase=0.5,
    mix=MixConfig(mixup=0.8, cutmix=1.0, smoothing=0.1),
)
CONFIGS = (PRETRAIN, VIEWS, FINETUNE)


def source() -> ArraySource:
    pixels = np.random.default_rng(0).integers(0, 256, (COUNT, 30, 44, 3), dtype=np.uint8)
    return ArraySource(pixels, labels=np.arange(COUNT) % 5)


def plan_of(config: PretrainConfig | FinetuneConfig, rank: int, ranks: int) -> BatchPlan:
    return batch_plan(config, source(), PixelKind("uint8", 3), ProcessInfo(rank, ranks, rank))


def made(
    config: PretrainConfig | FinetuneConfig, plan: BatchPlan, *, steps: int, workers: int
) -> Iterator[tuple[int, Batch]]:
    for step, batch in enumerate(batches(plan, start=0, stop=steps, workers=workers)):
        assert len(batch.ids) == plan.own_batch
        if isinstance(config, FinetuneConfig):
            batch = finetune_batch(batch, plan, config, step=step, device=torch.device("cpu"))
        yield step, batch


def digest(
    config: PretrainConfig | FinetuneConfig, *, ranks: int, workers: int, micro_batch: int
) -> str:
    """Digest (step, id, image, mask, drops, target) over all ranks: crops, flips and partners."""
    steps, found = 2 * COUNT // config.batch, []
    for rank in range(ranks):
        plan = plan_of(config, rank, ranks)
        for step, batch in made(config, plan, steps=steps, workers=workers):
            for part in batch.split(micro_batch):
                rows = [
                    t for t in (part.images, part.noise, part.drops, part.targets) if t is not None
                ]
                for i, number in enumerate(part.ids.tolist()):
                    content = b"".join(np.ascontiguousarray(t[i].numpy()).tobytes() for t in rows)
                    found.append((step, number, hashlib.sha256(content).hexdigest()))
    assert len({found_at[:2] for found_at in found}) == len(found) // getattr(
        config, "views_per_decode", 1
    )
    assert len(found) == steps * config.batch
    return hashlib.sha256(repr(sorted(found)).encode()).hexdigest()


@pytest.mark.parametrize("config", CONFIGS, ids=("pretrain", "views", "finetune"))
def test_any_ranks_and_micro_batches_have_the_inputs_of_one(
    config: PretrainConfig | FinetuneConfig,
) -> None:
    expected = digest(config, ranks=1, workers=0, micro_batch=config.batch)

    for ranks in (1, 2, 3, 4):
        for micro_batch in (2, 3):
            assert digest(config, ranks=ranks, workers=0, micro_batch=micro_batch) == expected
    assert digest(replace(config, seed=1), ranks=2, workers=0, micro_batch=2) != expected


@pytest.mark.slow
def test_readers_of_ranks_make_the_inputs_of_one() -> None:
    expected = digest(FINETUNE, ranks=1, workers=0, micro_batch=9)

    assert digest(FINETUNE, ranks=2, workers=1, micro_batch=2) == expected


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("config", CONFIGS, ids=("pretrain", "views", "finetune"))
def test_shares_are_each_image_once_and_about_as_large(
    config: PretrainConfig | FinetuneConfig, ranks: int
) -> None:
    plans = [plan_of(config, rank, ranks) for rank in range(ranks)]
    rows = [plan.own_rows for plan in plans]

    whole = config.batch // plans[0].views_per_decode
    assert sorted(np.concatenate(rows).tolist()) == list(range(whole))
    assert all((np.diff(own) > 0).all() for own in rows)
    sizes = [len(own) for own in rows]
    assert max(sizes) - min(sizes) <= (2 if plans[0].mirrored else 1) and min(sizes) > 0
    assert sum(plan.batch_bytes for plan in plans) == plan_of(config, 0, 1).batch_bytes


def test_a_rank_holds_the_partner_of_each_of_its_images() -> None:
    for rank in range(3):
        plan = plan_of(FINETUNE, rank, 3)
        _, ids = plan.batch_ids(4)

        own = ids[plan.own_rows]

        partners = dict(zip(ids.tolist(), ids[::-1].tolist(), strict=True))
        assert own[::-1].tolist() == [partners[number] for number in own.tolist()]


@pytest.mark.parametrize(
    ("config", "most", "what"),
    [
        (PRETRAIN, 11, "11 images"),
        (VIEWS, 6, "6 images of 2 views"),
        (FINETUNE, 5, "5 pairs of mixed images"),
        (replace(FINETUNE, mix=MixConfig()), 9, "9 images"),
    ],
)
def test_more_ranks_than_a_batch_has_images_are_one_line(
    config: PretrainConfig, most: int, what: str
) -> None:
    _require_share_each(config, most)

    with pytest.raises(
        ConfigError, match=f"^ranks: got {most + 1}, the batch has {what}; start at"
    ):
        _require_share_each(config, most + 1)
