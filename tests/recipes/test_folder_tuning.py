"""The recipe `finetune-folder`: what is chosen for how many images, and what the user keeps."""

from __future__ import annotations

import numpy as np
import pytest

from mae.config.run import FinetuneConfig
from mae.config.serialize import to_dict
from mae.data.sources.source import ArraySource
from mae.recipes.custom import build_config, kept_fields
from mae.recipes.folder_tuning import CHOSEN, FINETUNE_FOLDER, NAME, choose_tuning
from mae.train.choice import choose_tuning_config


def chosen(images: int, width: int = 192, **fields: object) -> FinetuneConfig:
    asked = build_config(NAME, FinetuneConfig, fields=fields)
    return choose_tuning(images, width, asked, kept=kept_fields(NAME, fields) or ())[0]


@pytest.mark.parametrize(
    ("images", "batch", "peak"),
    [(100, 16, 2e-3), (2_700, 32, 2e-3), (5_000, 64, 2e-3), (1_000_000, 128, 5e-4)],
)
def test_fewer_images_have_a_smaller_batch_and_a_rate_that_learns(
    images: int, batch: int, peak: float
) -> None:
    config = chosen(images)

    assert config.batch == batch and config.optim.peak_lr(batch) == pytest.approx(peak)
    assert config.epochs * (images // batch) >= 300
    assert config.warmup_share == pytest.approx(0.1)
    if images == 1_000_000:
        assert config == FINETUNE_FOLDER


def test_a_large_network_keeps_the_peak_rate_of_many_images() -> None:
    for width, peak in ((384, 2e-3), (768, 5e-4)):
        assert chosen(2_700, width).optim.peak_lr(32) == pytest.approx(peak)


def test_what_the_user_set_is_kept_and_the_rest_fits_it() -> None:
    small, line = choose_tuning(2_700, 192, chosen(2_700, batch=8), kept={"batch"})
    assert small.batch == small.micro_batch == 8
    assert small.optim.peak_lr(8) == pytest.approx(2e-3)
    assert line == (
        "finetune-folder: 2,700 training images, network of width 192; batch 8, base rate 0.064; "
        "as you set: batch"
    )

    rate = chosen(2_700, **{"optim.lr": 0.5})
    assert (rate.batch, rate.optim.lr) == (32, 0.5)
    assert chosen(2_700, epochs=4.0).warmup_share == pytest.approx(0.1)
    assert chosen(2_700, **{"optim.warmup_epochs": 3.0}).optim.warmup_epochs == 3
    assert chosen(2_700, **{"optim.name": "muon"}).optim.lr == FINETUNE_FOLDER.optim.lr
    assert chosen(100, batch=1024).optim.peak_lr(1024) == FINETUNE_FOLDER.optim.peak_lr(1024)


def test_a_run_that_exists_keeps_its_choice_and_an_older_one_its_batch() -> None:
    def choose(**how: object) -> tuple[FinetuneConfig, list[str]]:
        lines: list[str] = []
        given = {"kept": frozenset[str](), "weights": None, "log": lines.append, **how}
        source = ArraySource(np.zeros((100, 8, 12, 3), np.uint8))
        return choose_tuning_config(FINETUNE_FOLDER, source, **given), lines  # type: ignore[arg-type]

    older = {"recipe": NAME, "config": to_dict(FINETUNE_FOLDER)}
    assert choose(begun=older) == (FINETUNE_FOLDER, [])
    config, lines = choose(begun={**older, "recipe": "custom"})
    assert config.batch == 16 and len(lines) == 1
    assert choose(kept=None) == (FINETUNE_FOLDER, [])
    assert choose(kept=frozenset(CHOSEN)) == (FINETUNE_FOLDER, [])
