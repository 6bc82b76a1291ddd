"""Estimate the duration of a training run and warn if it is too short to learn."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from torch import nn

from mae.config.kinds import AnyRunConfig
from mae.config.run import FinetuneConfig, PretrainConfig
from mae.config.sizes import model_config
from mae.model.costs import step_flops
from mae.planning.estimate import Estimate
from mae.planning.hardware import this_machine
from mae.progress import hours_in_words
from mae.recipes.folder import NAME, small_row
from mae.train.measure import with_measured_rate
from mae.train.session import RunInProgress

SMALL, SMALL_SIZE = "vit-ti/16", 96
"""Network and image size to suggest where a longer run would take more than PATIENCE."""
PATIENCE = 1.0  # hours
_WORTH_FLOPS, _WORTH_STEPS = 1e12, 10_000  # of a run: below both, a CPU finishes within a minute
LEAST_TUNING = 100
"""Steps below which a classifier learns little, warm-up included (docs/recipes.md)."""
SMALL_BATCH = 16
"""Batch of fine-tuning to suggest where a run has too few steps."""
_OVERRIDDEN = {"epochs", "steps", "minutes", "batch", "lr", "optim.lr", "out"}
_NETWORK = {"model", "image-size", "model.image-size"}
_OPTION = re.compile(r"-{0,2}([A-Za-z][\w.-]*)(=.*)?", re.DOTALL)
_VALUE = re.compile(r"[-+.\d][-+.\dex,]*")


class Enough(NamedTuple):
    """The shortest run measured to beat a random encoder (docs/log.md)."""

    steps: int
    images: int
    batch: int
    peak_lr: float


ADAMW = Enough(steps=3_125, images=100_000, batch=32, peak_lr=1e-3)
"""2026-11-24, the first search: ahead in every column, by 1.2 points at least."""
MUON = Enough(steps=1_562, images=100_000, batch=64, peak_lr=5e-3)
"""2026-11-26, Muon and half of the demo: ahead by 2 points at least."""


def log_forecast(run: RunInProgress, model: nn.Module | None = None) -> None:
    """Print steps, images seen and hours, with a suggestion where the run is too short to learn.

    On a CPU the rate is measured for a few seconds if the run is long enough; on a GPU the first
    seconds of the run show it.

    Args:
        run: the run; its steps are recorded.
        model: the model before the run, not changed; required for fine-tuning.
    """
    config, num_steps = run.config, run.record["num_steps"]
    rate, images = _images_per_second(run, config, model), num_steps * config.batch
    words = "step of" if num_steps == 1 else "steps of"
    sees = "sees" if num_steps == 1 else "see"
    text = f"{num_steps:,} {words} {config.batch:,} {sees} {images:,} images"
    if not math.isnan(rate):
        text += f", in about {hours_in_words(images / rate / 3600)} on this machine"
    run.progress.note(text)
    if isinstance(config, FinetuneConfig):
        for notice in _tuning_notices(run, config, rate):
            run.progress.note(f"notice: {notice}")
        return
    if not isinstance(config, PretrainConfig):
        return
    chosen = _of_choice(config) if run.record.get("recipe") == NAME else None
    enough = chosen or (MUON if config.optim.name == "muon" else ADAMW)
    pretrained = run.record.get("init") is not None
    if pretrained or (num_steps >= enough.steps and images >= enough.images):
        return
    advise = _advice if chosen is None else _longer
    run.progress.note(
        f"notice: a network learns little in under {enough.steps:,} steps or {enough.images:,} "
        f"images{advise(run, config, enough, rate)}"
    )


def _tuning_notices(run: RunInProgress, config: FinetuneConfig, rate: float) -> Iterator[str]:
    """Yield what keeps a fine-tuning run from learning, with options that change it."""
    num_steps: int = run.record["num_steps"]
    option = "--{} {}" if run.stop.command else "{}={}"
    if config.warmup_share >= 1:
        name = "optim.warmup-epochs" if run.stop.command else "optim.warmup_epochs"
        fewer = option.format(name, f"{config.epochs / 10:g}")
        yield f"the whole run is warm-up, below the peak of its learning rate; try {fewer}"
    if num_steps >= LEAST_TUNING:
        return
    batch, changes = config.batch, dict[str, object]()
    if batch > SMALL_BATCH and config.steps is None:  # at the same peak rate
        batch = SMALL_BATCH
        changes = {"batch": batch, "lr": f"{config.optim.lr * config.batch / batch:.3g}"}
    images = LEAST_TUNING * batch
    if config.steps is not None:
        changes["steps"] = LEAST_TUNING
    elif config.minutes is not None:
        times = images / (num_steps * config.batch)
        minutes = config.minutes * times if math.isnan(rate) else images / rate / 60
        if minutes > config.minutes:
            changes["minutes"] = math.ceil(minutes)
    elif (epochs := math.ceil(images / (len(run.source) // batch * batch))) > config.epochs:
        changes["epochs"] = epochs
    tried = " ".join(option.format(name, value) for name, value in changes.items())
    yield f"a classifier learns little in under {LEAST_TUNING} steps; try {tried}"


def _of_choice(config: PretrainConfig) -> Enough | None:
    """Return the shortest run that learned with the network that `folder` chose, if it did."""
    row = small_row(config)
    if row is None or row.learned is None:
        return None
    peak = config.optim.peak_lr(row.batch)
    return Enough(row.learned, row.learned * row.batch, row.batch, peak)


def _images_per_second(
    run: RunInProgress, config: AnyRunConfig, model: nn.Module | None = None
) -> float:
    """Return the rate of this machine in images per second; nan where it is not measured."""
    num_steps: int = run.record["num_steps"]
    if config.minutes is not None and num_steps > 1:  # one step may take longer than the minutes
        return num_steps * config.batch / (60 * config.minutes)
    if run.ranks.process.world_size > 1:  # measuring one rank would not tell
        return math.nan
    machine = this_machine(config.device)
    estimate = Estimate.of_run(config, machine, len(run.source))
    work = num_steps * config.batch * estimate.flops_per_image
    if machine.device != "cpu" or (work < _WORTH_FLOPS and num_steps < _WORTH_STEPS):
        return math.nan
    estimate = with_measured_rate(
        estimate, run.source, run.kind, log=run.progress.note, model=model
    )
    return estimate.images_per_second


def _advice(run: RunInProgress, config: PretrainConfig, enough: Enough, rate: float) -> str:
    """Suggest a command or settings like those of the measured run; "" for the demo."""
    command = run.stop.command
    if command and tuple(command[:2]) != ("mae", "pretrain"):
        return ""
    batch = min(enough.batch, len(run.source))
    batch = max(1, batch // config.views_per_decode) * config.views_per_decode
    steps = max(enough.steps, math.ceil(enough.images / batch))
    lr = enough.peak_lr * 256 / batch
    if not command:
        peak = f"{enough.peak_lr:g} at its peak (optim.lr={lr:.3g})"
        return f"; try batch={batch}, steps={steps} and a learning rate of {peak}"
    out, hours = f"{run.rundir.path}-longer", steps * batch / rate / 3600
    options = {"batch": batch, "steps": steps, "lr": f"{lr:.3g}", "out": out}
    dropped = set(_OVERRIDDEN)
    small = model_config(SMALL, image_size=SMALL_SIZE)
    work, least = (step_flops(model, config.objective) for model in (config.model, small))
    if hours > PATIENCE and least < work:
        hours *= least / work
        options |= {"model": SMALL, "image-size": SMALL_SIZE}
        dropped |= _NETWORK
    added = (word for name, value in options.items() for word in (f"--{name}", str(value)))
    takes = "" if math.isnan(rate) else f" (about {hours_in_words(hours)})"
    return f"; try{takes}: {shlex.join([*_without(command, dropped), *added])}"


def _longer(run: RunInProgress, config: PretrainConfig, enough: Enough, rate: float) -> str:
    """Suggest the same run for longer, since `folder` chose its batch and rate."""
    command, value = run.stop.command, max(enough.steps, math.ceil(enough.images / config.batch))
    name = "steps"
    if config.minutes is not None:
        name, value = "minutes", math.ceil(value * config.batch / rate / 60)
    if not command:
        return f"; try {name}={value}"
    if tuple(command[:2]) != ("mae", "pretrain"):
        return ""
    words = _without(command, {"epochs", "steps", "minutes", "out"})
    longer = [*words, f"--{name}", f"{value}", "--out", f"{run.rundir.path}-longer"]
    return f"; try: {shlex.join(longer)}"


def _without(command: Sequence[str], dropped: set[str]) -> Iterator[str]:
    """Yield the words of a command line without some options and their values."""
    words = list(command)
    while words:
        word = words.pop(0)
        match = _OPTION.fullmatch(word)
        name = match[1].replace("_", "-") if match else ""
        if name not in dropped or not (word.startswith("-") or "=" in word):
            yield word
        elif match is not None and match[2] is None and words:
            words.pop(0)
            while words and name in _NETWORK and _VALUE.fullmatch(words[0]):
                words.pop(0)
