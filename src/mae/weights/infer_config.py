"""Infer the model config of weights from tensor shapes, file metadata and user options.

Fields that none of them determines are assumed and reported; `Known` records the source of each
field.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import fields as fields_of
from dataclasses import replace
from typing import Any, NamedTuple, Unpack

from mae.config.model import ModelConfig, PixelConfig, hidden_width
from mae.config.objective import ObjectiveConfig
from mae.config.sizes import SIZES, model_config
from mae.errors import WeightsError
from mae.weights.formats.name_table import NOWHERE
from mae.weights.given import OPTIONS, Given, network_fields
from mae.weights.load_state import foreign
from mae.weights.read import RawWeights

_PUBLISHED = [model_config(f"{name}/16") for name in SIZES]
# ViT-Small of OpenMMLab and of timm before 0.4: as wide as ViT-B, with 8 heads of width 96.
_OTHERS = {(768, 8, 2304): 8}

OBJECTIVE = tuple(f.name for f in fields_of(ObjectiveConfig))
"""Names of the inferred fields that belong to the objective; the rest are of the model."""

SQUARE = "by its shapes, assumed square"
ASSUMED = "assumed"


class Known(NamedTuple):
    """Inferred fields of a network and their sources."""

    fields: dict[str, Any]
    """Fields of `ModelConfig` and `ObjectiveConfig`, without numbers of heads that are unknown."""
    how: dict[str, str]
    """Source of each field: described, by its shapes, by config.json, as given, assumed."""
    unsaid: tuple[str, ...] = ()
    """Names of the assumed fields, with mean and std instead of pixels, and gelu."""


def read_fields(raw: RawWeights, **given: Unpack[Given]) -> Known:
    """Infer the network of the weights.

    A description determines every field. Without one, sizes follow from the tensors; other fields
    come from the metadata of the file, the given options, or the usual defaults, in this order.

    Raises:
        WeightsError: if a tensor that determines a size is missing or malformed, if the patch
            grid is not square and its size is unknown, if an option contradicts the file or has
            no effect, or if the description does not match the tensors.
    """
    asked = network_fields(given)
    if raw.description is not None:
        model = raw.description.model
        _require_held(raw, model)
        names = [f.name for f in fields_of(model) if raw.has_decoder or "decoder" not in f.name]
        fields = {name: getattr(model, name) for name in names}
        if raw.has_decoder:
            objective = raw.description.objective or ObjectiveConfig()
            fields |= {name: getattr(objective, name) for name in OBJECTIVE}
        _require_agreement(raw, asked, fields)
        return Known(fields, dict.fromkeys(fields, "described"))
    by_shape = _by_shapes(raw, grid=asked.get("grid"))
    said = {n: v for n, v in raw.facts.fields.items() if raw.has_decoder or "decoder" not in n}
    _require_agreement(raw, asked, {"patch_size": by_shape["patch_size"], **said})
    pixels = said.get("pixels") or _pixels(by_shape["channels"], asked)
    guessed = _usual(raw, by_shape) | {"pixels": pixels}
    own = {n: v for n, v in asked.items() if n not in ("grid", "mean", "std")}
    fields = {**guessed, **by_shape, **own, **said}
    how = (
        dict.fromkeys(guessed, ASSUMED)
        | dict.fromkeys(by_shape, "by its shapes")
        | {"image_size": "as given" if "grid" in asked else SQUARE}
        | dict.fromkeys(own, "as given")
        | dict.fromkeys(said, f"by {raw.facts.source}")
    )
    if how["pixels"] == ASSUMED and {"mean", "std"} <= asked.keys():
        how["pixels"] = "as given"
    unsaid = [name for name in OPTIONS if how.get(name) in (ASSUMED, SQUARE)]
    if how["pixels"] == ASSUMED:
        unsaid += [name for name in ("mean", "std") if name not in asked]
    unsaid += [] if raw.facts.gelu else ["gelu"]
    return Known(fields, how, tuple(unsaid))


def config_of(
    raw: RawWeights, *, crop_pct: float | None = None, **given: Unpack[Given]
) -> tuple[ModelConfig, list[str]]:
    """Return the model config of the weights, and notes on the assumptions made.

    Args:
        raw: the weights.
        crop_pct: fraction of an image that evaluation keeps; overrides the file.
        given: settings that the file does not say.

    Raises:
        WeightsError: if a field is unknown, or if file and caller disagree.
    """
    known = read_fields(raw, **given)
    if raw.description is not None:
        return _with_crop_pct(raw, raw.description.model, crop_pct, [*raw.notes])
    needed = ["num_heads", "decoder_heads"] if raw.has_decoder else ["num_heads"]
    unknown = [name for name in needed if name not in known.fields]
    if unknown:
        names = ", ".join(name.removeprefix("num_") for name in unknown)
        raise WeightsError(
            f"{raw.path}: is of no published width and does not tell its heads; give {names} "
            f"({', '.join(OPTIONS[name] for name in unknown)})"
        )
    notes = [*raw.notes, *raw.facts.notes, *guesses(raw, known)]
    fields = {name: value for name, value in known.fields.items() if name not in OBJECTIVE}
    return _with_crop_pct(raw, ModelConfig(**fields), crop_pct, notes)


def objective_of(raw: RawWeights, **given: Unpack[Given]) -> ObjectiveConfig:
    """Return the mask and target of the weights; unknown fields have their defaults."""
    known = read_fields(raw, **given).fields
    return ObjectiveConfig(**{name: known[name] for name in OBJECTIVE if name in known})


def _with_crop_pct(
    raw: RawWeights, model: ModelConfig, given: float | None, notes: list[str]
) -> tuple[ModelConfig, list[str]]:
    """Set `crop_pct` if it is given or follows from the run."""
    if given is not None:
        return replace(model, crop_pct=given), notes
    if model.crop_pct is None and raw.whole_images:
        notes.append(
            f"{raw.path}: does not say its crop_pct; assumed 1, as its run trained on whole images"
        )
        return replace(model, crop_pct=1.0), notes
    return model, notes


def guesses(
    raw: RawWeights,
    known: Known,
    *,
    options: Mapping[str, str] = OPTIONS,
    more: Iterable[str] = (),
) -> list[str]:
    """Describe the assumptions in one line, each with the option that overrides it.

    Args:
        raw: the weights.
        known: result of `read_fields`, or one with other values for the assumed fields.
        options: command-line options by field name.
        more: further assumptions, as text.
    """
    values, parts = known.fields, []
    for name in known.unsaid:
        if name == "gelu":
            parts.append("exact GELU (no other is possible)")
        elif name == "image_size":
            H, W = values[name]
            parts.append(f"square images of {H} x {W} ({options[name]})")
        elif name in ("mean", "std"):
            numbers = " ".join(f"{value:g}" for value in getattr(values["pixels"], name))
            parts.append(f"pixel {name} {numbers} ({options[name]})")
        elif name == "normalize_target":
            target = "pixels normalised by their patch" if values[name] else "plain pixels"
            parts.append(f"a target of {target} ({options[name]})")
        elif name in values:
            words = {"num_heads": "{} heads", "decoder_heads": "{} decoder heads"}
            parts.append(f"{words.get(name, 'norm eps {:g}').format(values[name])} "
                         f"({options[name]})")  # fmt: skip
    parts += more
    return [f"{raw.path}: assumed, since it does not say: {', '.join(parts)}"] if parts else []


def _by_shapes(raw: RawWeights, *, grid: tuple[int, int] | None) -> dict[str, Any]:
    """Infer the sizes of a network from its tensor shapes."""
    width, channels, patch_size, across = _shape(raw, "encoder.patch_embed.proj.weight", ndim=4)
    if patch_size != across:
        raise WeightsError(
            f"{raw.path}: has patches of {patch_size} x {across} pixels, expected square ones; "
            "this model cannot be held"
        )
    hidden, _ = _shape(raw, "encoder.blocks.0.mlp.fc1.weight", ndim=2)
    L = _shape(raw, "encoder.pos_embed", ndim=3)[1] - 1
    edge = math.isqrt(L)
    if grid is not None and grid[0] * grid[1] != L:
        raise WeightsError(f"{raw.path}: grid: got {grid[0]} x {grid[1]}, its {L} patches do not "
                           "make that")  # fmt: skip
    if edge**2 != L and grid is None and "image_size" not in raw.facts.fields:
        why = _foreign(raw) or (
            f"has {L} patches, which make no square, and does not tell height and width; give "
            "--grid HEIGHT WIDTH in patches, or weights with a description"
        )
        if math.isqrt(L + 1) ** 2 == L + 1:
            why += " (or it has no position for the cls token, which this network has)"
        raise WeightsError(f"{raw.path}: {why}")
    h, w = grid or (edge, edge)
    fields = {
        "image_size": (h * patch_size, w * patch_size),
        "patch_size": patch_size,
        "channels": channels,
        "width": width,
        "depth": _depth(raw, "encoder.blocks."),
        "mlp_ratio": hidden / width,
    }
    if raw.has_decoder:
        E, _ = _shape(raw, "decoder.embed.weight", ndim=2)
        fields |= {"decoder_width": E, "decoder_depth": _depth(raw, "decoder.blocks.")}
    return fields


def _usual(raw: RawWeights, by_shape: Mapping[str, Any]) -> dict[str, Any]:
    """Return the default values of the fields that shapes do not determine."""
    D, E = by_shape["width"], by_shape.get("decoder_width")
    own = (D, by_shape["depth"], round(D * by_shape["mlp_ratio"]))
    usual: dict[str, Any] = {
        "num_heads": _OTHERS.get(own, {m.width: m.num_heads for m in _PUBLISHED}.get(D)),
        "norm_eps": ModelConfig().norm_eps,
        "decoder_heads": next((m.decoder_heads for m in _PUBLISHED if m.decoder_width == E), None),
        "normalize_target": True,
        **raw.facts.assumed,
    }
    of_decoder = {"decoder_heads", "normalize_target"}
    return {
        name: value
        for name, value in usual.items()
        if value is not None and (raw.has_decoder or name not in of_decoder)
    }


def _pixels(channels: int, asked: Mapping[str, Any]) -> PixelConfig:
    """Return the given pixel scaling, with defaults (ImageNet's for three channels)."""
    usual = PixelConfig()
    if channels != len(usual.mean):
        usual = PixelConfig(mean=(0.5,) * channels, std=(0.5,) * channels)
    return PixelConfig(mean=asked.get("mean", usual.mean), std=asked.get("std", usual.std))


def _require_agreement(raw: RawWeights, asked: Mapping[str, Any], said: Mapping[str, Any]) -> None:
    """Reject options that contradict the file or have no effect."""
    unused = asked.keys() & {"decoder_heads", "normalize_target"}
    if unused and not raw.has_decoder:
        raise WeightsError(
            f"{' and '.join(sorted(unused))}: no effect, no decoder is taken from {raw.path}; "
            "leave it out"
        )
    own = dict(said)
    if "pixels" in said:
        own |= {name: getattr(said["pixels"], name) for name in ("mean", "std")}
    if {"image_size", "patch_size"} <= said.keys():
        own["grid"] = tuple(edge // said["patch_size"] for edge in said["image_size"])
    wrong = {name: value for name, value in asked.items() if own.get(name, value) != value}
    if wrong:
        held = {name: own[name] for name in wrong}
        raise WeightsError(
            f"{', '.join(wrong).replace('num_', '')}: got {wrong}, but {raw.path} says {held}; "
            "leave it out"
        )


def _require_held(raw: RawWeights, model: ModelConfig) -> None:
    """Reject a description that does not match the tensors, before allocating the network."""
    D, C, p, _ = _shape(raw, "encoder.patch_embed.proj.weight", ndim=4)
    hidden, _ = _shape(raw, "encoder.blocks.0.mlp.fc1.weight", ndim=2)
    L = _shape(raw, "encoder.pos_embed", ndim=3)[1] - 1
    held = {
        "width": (model.width, D),
        "channels": (model.channels, C),
        "patch_size": (model.patch_size, p),
        "depth": (model.depth, _depth(raw, "encoder.blocks.")),
        "mlp_ratio": (hidden_width(model.width, model.mlp_ratio) / model.width, hidden / D),
        "image_size": (f"{model.num_patches} patches", f"{L} patches"),
    }
    if raw.has_decoder:
        E, _ = _shape(raw, "decoder.embed.weight", ndim=2)
        held["decoder_width"] = (model.decoder_width, E)
        held["decoder_depth"] = (model.decoder_depth, _depth(raw, "decoder.blocks."))
    for name, (said, is_held) in held.items():
        if said != is_held:
            raise WeightsError(
                f"{raw.path}: its description says {name} {said}, its tensors {is_held}; restore "
                "the folder as it was written"
            )


def _shape(raw: RawWeights, name: str, *, ndim: int) -> tuple[int, ...]:
    shape = tuple(raw.tensors[name].shape) if name in raw.tensors else ()
    if len(shape) != ndim or 0 in shape:
        why = _foreign(raw) or (
            f"{raw.spell(name)} is {f'of shape {shape}' if shape else 'missing'}, expected {ndim} "
            "dimensions; get the whole file"
        )
        raise WeightsError(f"{raw.path}: {why}")
    return shape


def _foreign(raw: RawWeights) -> str:
    """Describe tensors of an unsupported network, whose sizes cannot be inferred."""
    unknown = [name for name in raw.tensors if name.startswith(NOWHERE)]
    is_encoder = "encoder.patch_embed.proj.weight" in raw.tensors
    absent = ["encoder.cls_token"] * (is_encoder and "encoder.cls_token" not in raw.tensors)
    cause = foreign(raw, missing=absent, unexpected=unknown)
    named = {"unexpected": unknown, "missing": absent}
    counts = [
        f"{len(names)} {what} ({'; '.join(map(raw.spell, names[:5]))})"
        for what, names in named.items()
        if names
    ]
    return f"{', '.join(counts)}; {cause}" if cause else ""


def _depth(raw: RawWeights, prefix: str) -> int:
    # Count distinct numbers: a gap then shows up as missing and unexpected blocks.
    return len({name.split(".")[2] for name in raw.tensors if name.startswith(prefix)})
