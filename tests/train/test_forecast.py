"""What a run says before its first step: length, time, and a command where it cannot learn."""

from __future__ import annotations

import math
import shlex
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mae.cli.options import options_of, read_words
from mae.cli.verbs.training import pretrain as verb
from mae.config.model import ModelConfig
from mae.config.run import FitConfig, PretrainConfig
from mae.data.decoding.decode import PixelKind
from mae.data.sources.source import ArraySource
from mae.jobs.pretrain import pretrain
from mae.parallel.processes import SINGLE_PROCESS
from mae.progress import hours_in_words
from mae.recipes.folder import SHORT, TINY, Facts, choose
from mae.train import forecast, measure
from mae.train.forecast import ADAMW, MUON, log_forecast
from tests.jobs.kill_storm import CONFIG, images

LARGE = ModelConfig(width=48, depth=8, num_heads=4, decoder_width=32, decoder_depth=2,
                    decoder_heads=2, image_size=(224, 160))  # fmt: skip


def said(
    config: PretrainConfig,
    *,
    steps: int,
    command: str = "mae pretrain --data in",
    count: int = 50,
    init: str | None = None,
    recipe: str = "custom",
) -> list[str]:
    lines: list[str] = []
    run: Any = SimpleNamespace(
        config=replace(config, device="cpu"),
        source=ArraySource(np.zeros((count, 16, 24, 3), np.uint8)),
        kind=PixelKind("uint8", 3),
        record={"num_steps": steps, "init": init, "recipe": recipe},
        progress=SimpleNamespace(note=lines.append),
        stop=SimpleNamespace(command=shlex.split(command)),
        rundir=SimpleNamespace(path=Path("runs/in")),
        ranks=SINGLE_PROCESS,
    )
    log_forecast(run)
    return lines


def test_steps_and_images_are_said_and_a_command_that_learns() -> None:
    lines = said(replace(CONFIG, batch=8), steps=44)

    assert lines == [
        "44 steps of 8 see 352 images",
        "notice: a network learns little in under 3,125 steps or 100,000 images; try: mae pretrain "
        "--data in --batch 32 --steps 3125 --lr 0.008 --out runs/in-longer",
    ]


def test_the_peak_of_the_suggested_rate_is_the_one_that_was_measured() -> None:
    for enough, name in ((ADAMW, "adamw"), (MUON, "muon")):
        optim = replace(CONFIG.optim, name=name)
        for count in (500, 7):
            line = said(replace(CONFIG, batch=4, optim=optim), steps=44, count=count)[-1]
            words = shlex.split(line.partition("; try: ")[2])[2:]
            _, fields = read_words(words, options_of(verb), verb="pretrain")
            batch, steps = fields["batch"], fields["steps"]

            assert batch == min(enough.batch, count)
            assert steps >= enough.steps and steps * batch >= enough.images
            peak = replace(optim, lr=fields["optim.lr"]).peak_lr(batch)
            assert peak == pytest.approx(enough.peak_lr, rel=1e-2)


@pytest.mark.parametrize(
    ("steps", "batch", "learns"),
    [(3_125, 32, True), (3_124, 40, False), (4_000, 24, False), (100_000, 1, True)],
)
def test_steps_and_images_have_both_to_be_enough(steps: int, batch: int, learns: bool) -> None:  # noqa: FBT001
    lines = said(replace(CONFIG, steps=steps, batch=batch), steps=steps)

    assert learns is not any(line.startswith("notice:") for line in lines)


def test_a_run_from_weights_needs_fewer() -> None:
    assert len(said(CONFIG, steps=44, init="w")) == 1


def test_python_is_told_fields_and_the_demo_no_command() -> None:
    python, demo = (said(CONFIG, steps=44, command=command)[-1] for command in ("", "mae demo"))

    assert python.endswith(
        "; try batch=32, steps=3125 and a learning rate of 0.001 at its peak (optim.lr=0.008)"
    )
    assert demo.endswith("or 100,000 images")


@pytest.mark.parametrize(
    "typed",
    [
        "pretrain --steps 7 --data in --batch=4096 --minutes 3 folder --lr 0.1 --out x",
        "pretrain steps=7 data=in batch=9 folder --epochs 3 --optim.lr=3 out=y",
        "pretrain -batch 9 --data=in --out 'a b' folder",
    ],
)
def test_what_is_suggested_takes_the_place_of_what_was_typed(typed: str) -> None:
    line = said(CONFIG, steps=7, command=f"mae {typed}")[-1]

    words = shlex.split(line.partition("; try: ")[2])
    values, fields = read_words(words[2:], options_of(verb), verb="pretrain")
    assert (values, fields.pop("data")) == (["folder"], "in")
    said_so = {name: value for name, value in fields.items() if name != "given"}
    expected = {"batch": 32, "steps": 3125, "optim.lr": 0.008, "out": Path("runs/in-longer")}
    assert said_so == expected


def test_what_folder_chose_is_not_contradicted() -> None:
    facts = Facts(images=50, side=96, channels=3, device="cpu", minutes=0.5)
    config = replace(choose(facts).config, minutes=0.5)
    command = "mae pretrain --data in --minutes 0.5"

    _, notice = said(config, steps=100, command=command, recipe="folder")
    assert notice == (
        "notice: a network learns little in under 298 steps or 19,072 images; try: mae pretrain "
        "--data in --minutes 2 --out runs/in-longer"
    )
    python = said(config, steps=100, command="", recipe="folder")[-1]
    assert python.endswith("; try minutes=2")
    assert len(said(config, steps=298, command=command, recipe="folder")) == 1
    assert "1,562 steps" in said(config, steps=298, command=command)[-1]
    tiny = replace(choose(facts._replace(side=28)).config, minutes=0.5)
    assert "1,562 steps" in said(tiny, steps=1_561, recipe="folder")[-1]
    longer = replace(choose(facts._replace(minutes=40)).config, minutes=40)
    assert "858 steps or 54,912 images" in said(longer, steps=857, recipe="folder")[-1]


def test_hours_are_measured_where_a_run_is_worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(CONFIG, model=LARGE, batch=64, micro_batch=32)
    monkeypatch.setattr(measure, "step_seconds", lambda *args, **more: 4.0)

    lines = said(config, steps=4_000, count=100)

    assert lines[0].startswith("measuring the rate of this machine, ")
    few = int(lines[0].split(", ")[1].split()[0])
    hours = hours_in_words(4_000 * 64 / few * 4 / 3600)
    assert lines[1:] == [f"4,000 steps of 64 see 256,000 images, in about {hours} on this machine"]


@pytest.mark.slow
def test_a_long_run_of_a_large_network_is_told_of_a_small_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    large = ModelConfig(image_size=(224, 224))
    config = replace(CONFIG, model=large, batch=64, micro_batch=32)
    monkeypatch.setattr(measure, "step_seconds", lambda *args, **more: 4.0)

    command = "mae pretrain --data in --image-size 224 224 --steps 40"
    line = said(config, steps=40, count=100, command=command)[-1]

    assert line.endswith(
        ": mae pretrain --data in --batch 32 --steps 3125 --lr 0.008 --out runs/in-longer "
        "--model vit-ti/16 --image-size 96"
    )
    assert "; try (about " in line


@pytest.mark.skipif(
    not any(option.flag == "model" for option in options_of(verb)), reason="no --model yet"
)
def test_the_small_network_is_an_option() -> None:
    words = ["--model", forecast.SMALL, "--image-size", str(forecast.SMALL_SIZE)]

    assert read_words(words, options_of(verb), verb="pretrain")[1]


def test_the_rate_of_a_real_network_is_measured_in_seconds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(measure, "QUICK_SECONDS", 0.01)
    config = replace(CONFIG, model=LARGE, batch=48, micro_batch=32, device="cpu")
    run: Any = SimpleNamespace(
        source=ArraySource(images()),
        kind=PixelKind("uint8", 3),
        record={"num_steps": 4_000},
        progress=SimpleNamespace(note=lambda line: None),
        ranks=SINGLE_PROCESS,
    )

    rate = forecast._images_per_second(run, config)

    assert 0.1 < rate < 1e5
    run.record["num_steps"] = 1
    assert math.isnan(forecast._images_per_second(run, replace(CONFIG, device="cpu")))


def test_minutes_are_announced_while_they_are_measured_and_known_after(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mae.train.measure.step_seconds", lambda *args, **more: 0.6)
    timed = replace(CONFIG, steps=None, minutes=0.06)

    pretrain(timed, data=images(), out=tmp_path)

    err = capfd.readouterr().err
    assert err.index("measuring the rate for 4 s or more: how many steps 0.06 minutes hold") < (
        err.index("6 steps of 8 see 48 images, in about 1 minute on this machine")
    )


def test_what_was_measured_is_in_the_log() -> None:
    log = (Path(__file__).parents[2] / "docs" / "log.md").read_text()

    assert "**100,000 samples** (3,125 updates)" in log
    assert f"| muon, batch {MUON.batch}, peak 5e-3 | 100,000 |" in log
    assert MUON.steps == MUON.images // MUON.batch
    assert ADAMW.steps == ADAMW.images / ADAMW.batch
    assert f"with {SHORT.learned} one of 96 x 4" in log
    assert TINY.learned == MUON.steps


def test_a_usual_configuration_keeps_two_checkpoints_and_as_many_rows_as_fit() -> None:
    usual = FitConfig()

    assert (usual.keep, usual.log_every_steps, usual.keep_checkpoints) == (2, None, False)
