"""What a fine-tuning run says before its first step, and what it is told where it is too short."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mae.config.model import ModelConfig
from mae.config.run import FinetuneConfig, OptimConfig
from mae.data.decoding.decode import PixelKind
from mae.data.sources.source import ArraySource
from mae.model.classifier import Classifier
from mae.model.create import create
from mae.parallel.processes import SINGLE_PROCESS
from mae.train import measure
from mae.train.forecast import LEAST_TUNING, log_forecast

MODEL = ModelConfig(width=48, depth=3, num_heads=4, decoder_width=32, decoder_depth=2,
                    decoder_heads=2, image_size=(96, 64))  # fmt: skip
CONFIG = FinetuneConfig(
    model=MODEL,
    num_classes=3,
    batch=128,
    epochs=50,
    optim=OptimConfig(lr=1e-3, warmup_epochs=5),
    device="cpu",
)


def said(config: FinetuneConfig, *, steps: int, count: int = 300, typed: bool = True) -> list[str]:
    lines: list[str] = []
    run: Any = SimpleNamespace(
        config=config,
        source=ArraySource(np.zeros((count, 16, 24, 3), np.uint8), labels=np.arange(count) % 3),
        kind=PixelKind("uint8", 3),
        record={"num_steps": steps, "recipe": "finetune-folder"},
        progress=SimpleNamespace(note=lines.append),
        stop=SimpleNamespace(command=["mae", "finetune"] if typed else []),
        rundir=SimpleNamespace(path=Path("runs/in")),
        ranks=SINGLE_PROCESS,
    )
    log_forecast(run, Classifier(create(MODEL).encoder, num_classes=3))
    return [line for line in lines if not line.startswith("measuring")]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "QUICK_STEPS", 1)
    monkeypatch.setattr(measure, "QUICK_SECONDS", 0.01)


def test_a_sound_run_says_its_steps_images_and_time_alone() -> None:
    (line,) = said(replace(CONFIG, batch=4), steps=12_000)

    assert line.startswith("12,000 steps of 4 see 48,000 images, in about ")
    assert line.endswith(" on this machine")
    assert len(said(replace(CONFIG, batch=4), steps=LEAST_TUNING)) == 1


@pytest.mark.parametrize(
    ("changes", "steps", "advice"),
    [
        ({}, 99, "--batch 16 --lr 0.008"),
        ({"epochs": 2}, 4, "--batch 16 --lr 0.008 --epochs 6"),
        ({"epochs": 2, "batch": 8}, 74, "--epochs 3"),
        ({"epochs": 2, "steps": 40}, 40, "--steps 100"),
        ({"minutes": 2.0, "batch": 20}, 50, "--batch 16 --lr 0.00125 --minutes 4"),
        ({"minutes": 2.0}, 50, "--batch 16 --lr 0.008"),
    ],
)
def test_a_run_of_too_few_steps_is_told_what_gives_enough(
    changes: dict[str, Any], steps: int, advice: str
) -> None:
    config = replace(CONFIG, **changes, optim=replace(CONFIG.optim, warmup_epochs=0.1))

    *_, notice = said(config, steps=steps)

    assert notice == f"notice: a classifier learns little in under 100 steps; try {advice}"


def test_one_step_in_place_of_a_minute_is_timed_again() -> None:
    line, notice = said(replace(CONFIG, minutes=1.0, model=replace(MODEL, depth=40)), steps=1)

    assert line.startswith("1 step of 128 sees 128 images")
    assert notice.startswith(
        "notice: a classifier learns little in under 100 steps; try --batch 16"
    )


def test_python_is_told_keywords_and_a_run_of_warm_up_its_own_length() -> None:
    short = replace(CONFIG, epochs=4, batch=2)

    _, notice = said(short, steps=600, typed=False)

    assert notice == (
        "notice: the whole run is warm-up, below the peak of its learning rate; try "
        "optim.warmup_epochs=0.4"
    )
