"""The recipe `folder`: settings chosen by the images, the device and the minutes of a run."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any, Literal, NamedTuple

from mae.config.kinds import ConfigT
from mae.config.model import ModelConfig
from mae.config.objective import ObjectiveConfig
from mae.config.run import AugmentConfig, OptimConfig, PretrainConfig
from mae.config.sizes import SIZES, model_config, size_name
from mae.errors import ConfigError
from mae.progress import minutes_in_words

NAME = "folder"

FOLDER = PretrainConfig(
    model=model_config("vit-s/16"),
    epochs=200,
    # Few images give few steps of a large batch, and steps matter most (docs/log.md). The rate
    # lies between the paper's rule and the best rate of the demo at batch 32; it is not tuned.
    batch=128,
    micro_batch=64,
    optim=OptimConfig(lr=6e-4, warmup_epochs=10, decay_tokens=False),
    augment=AugmentConfig(crop_scale=(0.2, 1.0), flip=0.5),
    held_out=0.05,
)
"""For many images on a GPU, and for a network that the user set."""

LEAST_STEPS = 9_400
"""Steps of a run without minutes: as many as the demo took to learn (docs/log.md)."""


class Facts(NamedTuple):
    """What is known of a run before its recipe is chosen."""

    images: int
    """Number of images."""
    side: int
    """Median of the shorter sides of the images, in pixels."""
    channels: int
    device: str
    """cpu, cuda or mps."""
    minutes: float | None = None
    """Asked of the run; None: as long as it takes."""
    from_weights: bool = False
    """Whether the run starts from weights."""


class Choice(NamedTuple):
    """A chosen configuration, and why: three lines for the user."""

    config: PretrainConfig
    reasons: tuple[str, ...]


class Row(NamedTuple):
    """A row of the table: a network and how to train it."""

    why: str
    model: Mapping[str, int]
    """Widths, depths and heads."""
    edge: int
    """Largest height and width, in pixels."""
    batch: int
    micro_batch: int
    optim: Literal["adamw", "muon", "lars"]
    lr: float
    """Base rate per 256 images."""
    eps: float
    """Added to the variance of a patch, `ObjectiveConfig.target_eps`."""
    epochs: int
    """Without minutes, at least; more where they make fewer than `LEAST_STEPS`."""
    warmup: float
    """Fraction of the run."""
    patches: tuple[int, ...]
    """Edges of a patch, the largest first."""
    crop: tuple[float, float] = FOLDER.augment.crop_scale
    """Smallest and largest crop, as fractions of the area."""
    learned: int | None = None
    """Steps of the shortest run measured to beat a random encoder; None: not measured."""


def _sizes(width: int, depth: int, decoder_width: int, decoder_depth: int) -> dict[str, int]:
    return {
        "width": width, "depth": depth, "num_heads": width // 32, "decoder_width": decoder_width,
        "decoder_depth": decoder_depth, "decoder_heads": decoder_width // 32,
    }  # fmt: skip


SHORT = Row(
    why="in minutes many steps of a small network learn most",
    model=_sizes(96, 4, 64, 2),
    edge=96,
    patches=(8, 4),
    batch=64,
    micro_batch=32,
    optim="muon",
    lr=0.012,
    eps=1e-3,
    epochs=5,
    warmup=0.1,
    learned=298,
)
SMALL = SHORT._replace(
    why="longer runs have the steps for a larger network",
    model=_sizes(192, 6, 128, 2),
    learned=858,
)
# As the demo, whose images are small and show one thing each (docs/log.md).
TINY = SHORT._replace(
    why="small images need no larger network and are seen whole", crop=(1.0, 1.0), learned=1_562
)
LARGE = Row(
    why="as for many images on a GPU",
    model=SIZES["vit-s"],
    edge=224,
    patches=(16, 8, 4),
    batch=FOLDER.batch,
    micro_batch=64,
    optim="adamw",
    lr=FOLDER.optim.lr,
    eps=1e-6,
    epochs=200,
    warmup=0.05,
)
SMALL_SIDE, SHORT_MINUTES = 64, 30
"""On a CPU, images of a shorter side below it are of `TINY`, runs of fewer minutes of `SHORT`."""
_NO_NETWORK = {f"model.{name}" for name in ("image_size", "patch_size", "crop_pct", "norm_eps")}
CHOSEN = (
    *(f"model.{name}" for name in SMALL.model), "model.image_size", "model.patch_size",
    "objective.target_eps", "batch",
    "micro_batch", "epochs", "optim.name", "optim.lr", "optim.warmup_epochs",
    "augment.crop_scale",
)  # fmt: skip
"""Dotted names of the fields that are chosen where the user did not set them."""


def choose(facts: Facts, asked: PretrainConfig = FOLDER, *, kept: Collection[str] = ()) -> Choice:
    """Choose the fields that the user did not set, from facts alone.

    The speed of the machine plays no part, so that the same command makes the same choice when it
    resumes its run.

    Args:
        facts: of the images and the run.
        asked: `FOLDER` with the changes of the user.
        kept: dotted names of the fields that the user set. For a network of the user, only image
            and patch size are chosen; weights bring their own.

    Raises:
        ConfigError: for no image, or images smaller than a patch.
    """
    if facts.images < 1:
        raise ConfigError("data: got no image, expected at least one; check the folder")
    if facts.from_weights:
        config = _follow_weights(asked, kept)
        return Choice(config, _reasons(facts, config, "that of the weights", kept))
    network = {name for name in kept if name.startswith("model.")}
    has_network = bool(network - _NO_NETWORK)
    row = LARGE if has_network else _row(facts)
    fields = _of_images(facts, row, asked, kept)
    if not has_network:
        fields |= {f"model.{name}": value for name, value in row.model.items()}
        fields |= _of_training(facts, row, asked, kept)
    config = with_fields(asked, {n: value for n, value in fields.items() if n not in kept})
    why = "a network as you set it" if has_network else row.why
    return Choice(config, _reasons(facts, config, why, kept))


def _row(facts: Facts) -> Row:
    """Return the row of the table; docs/recipes.md has its measurements."""
    if facts.device != "cpu":
        return LARGE
    if facts.side < SMALL_SIDE:
        return TINY
    return SMALL if facts.minutes is None or facts.minutes >= SHORT_MINUTES else SHORT


def small_row(config: PretrainConfig) -> Row | None:
    """Return the row of a CPU whose network a run has, or None."""
    small = TINY if min(config.model.image_size) < SMALL_SIDE else SHORT
    for row in (small, SMALL):
        if all(getattr(config.model, name) == value for name, value in row.model.items()):
            return row
    return None


def _follow_weights(asked: PretrainConfig, kept: Collection[str]) -> PretrainConfig:
    """Take the network of the weights, unless the user set more of it than the image size."""
    own = {name for name in kept if name.startswith(("model.", "objective."))}
    if not own <= {"model.image_size", "model.crop_pct"}:
        return asked
    return replace(
        asked,
        follow_weights=True,
        resize=asked.model.image_size if "model.image_size" in kept else asked.resize,
        model=ModelConfig(crop_pct=asked.model.crop_pct),
        objective=ObjectiveConfig(),
    )


def _of_images(
    facts: Facts, row: Row, asked: PretrainConfig, kept: Collection[str]
) -> dict[str, Any]:
    """Choose image and patch size: no image is enlarged, and small ones have small patches."""
    if "model.image_size" in kept or "start_size" in kept:
        sizes = (*asked.model.image_size, *(asked.start_size or ()))
        patches = (_patch(min(sizes), row), asked.model.patch_size)
        return {"model.patch_size": next(p for p in patches if not any(s % p for s in sizes))}
    edge = min(row.edge, facts.side)
    patch = asked.model.patch_size if "model.patch_size" in kept else _patch(edge, row)
    if facts.side < patch:
        raise ConfigError(
            f"data: the images have {facts.side} pixels along their shorter side, fewer than a "
            f"patch of {patch}; give larger images, or --image-size {2 * patch} to enlarge them"
        )
    edge = max(2, edge // patch) * patch
    return {"model.image_size": (edge, edge), "model.patch_size": patch}


def _patch(edge: int, row: Row) -> int:
    """Return a patch edge: 7 patches or more along an image of 28 pixels or more."""
    return next((patch for patch in row.patches if 8 * patch <= edge), row.patches[-1])


def _of_training(
    facts: Facts, row: Row, asked: PretrainConfig, kept: Collection[str]
) -> dict[str, Any]:
    """Choose batch, optimiser, length and crops for the network of a row."""
    batch = asked.batch if "batch" in kept else row.batch
    epochs: float = max(row.epochs, math.ceil(LEAST_STEPS / max(1, facts.images // batch)))
    epochs = asked.epochs if "epochs" in kept else epochs
    fields: dict[str, Any] = {
        "batch": batch,
        "micro_batch": min(row.micro_batch, batch),
        "epochs": epochs,
        "optim.warmup_epochs": row.warmup * epochs,
        "objective.target_eps": row.eps,
        "augment.crop_scale": row.crop,
    }
    if "optim.name" not in kept or asked.optim.name == row.optim:
        fields |= {"optim.name": row.optim, "optim.lr": row.lr}
    return fields


def fitting_patch(model: ModelConfig, size: object) -> dict[str, int]:
    """Return a patch for an image size that the user set: that of a network, if it fits.

    Args:
        model: the network.
        size: height and width in pixels; anything else changes nothing.
    """
    sides = size if isinstance(size, tuple | list) else ()
    for patch in (model.patch_size, *LARGE.patches):
        if sides and all(isinstance(s, int) and s % patch == 0 and s >= 2 * patch for s in sides):
            return {"patch_size": patch}
    return {}


def with_fields(config: ConfigT, fields: Mapping[str, Any]) -> ConfigT:
    """Return a configuration with other values of fields, by dotted name."""
    groups: dict[str, dict[str, Any]] = {}
    for path, value in fields.items():
        group, _, name = path.rpartition(".")
        groups.setdefault(group, {})[name] = value
    plain = groups.pop("", {})
    nested: dict[str, Any] = {
        group: replace(getattr(config, group), **values) for group, values in groups.items()
    }
    return replace(config, **plain, **nested)


def _reasons(
    facts: Facts, config: PretrainConfig, why: str, kept: Collection[str]
) -> tuple[str, ...]:
    """Describe a choice in three lines: what was found, the network, the training."""
    model, optim = config.model, config.optim
    length = "" if facts.minutes is None else f", {minutes_in_words(facts.minutes)}"
    found = (
        f"folder: {facts.images:,} images, {facts.side} pixels along their shorter side, "
        f"{facts.channels} channel{'s' if facts.channels > 1 else ''}; {facts.device}{length}"
    )
    network = why
    if not config.follow_weights:
        name = size_name(width=model.width, depth=model.depth, patch_size=model.patch_size)
        network = f"{name}, images of {' x '.join(map(str, model.image_size))}; {why}"
    if facts.minutes is not None:
        length = minutes_in_words(facts.minutes)
    elif config.steps is not None:
        length = f"{config.steps:,} steps"
    else:
        length = f"{config.epochs:,g} epochs"
    training = f"{optim.name}, batch {config.batch}, base rate {optim.lr:g}, {length}"
    own = sorted({*kept} & {*CHOSEN})
    given = f"; as you set: {', '.join(own)}" if own else "; options override each of them"
    return found, f"folder: network {network}", f"folder: training {training}{given}"
