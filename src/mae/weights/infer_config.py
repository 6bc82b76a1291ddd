"""Infer the model config of weights from tensor shapes, file metadata and user options.

Fields that none of them determines are assumed and reported; `Inferred` records the source of each
field.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, replace
from dataclasses import fields as fields_of
from typing import Any, NamedTuple

from mae.config.model import ModelConfig, PixelConfig, hidden_width
from mae.config.objective import ObjectiveConfig
from mae.config.sizes import SIZES, model_config
from mae.errors import WeightsError
from mae.weights.formats.name_table import UNKNOWN
from mae.weights.given import OPTIONS
from mae.weights.load_state import count_names, unsupported
from mae.weights.read import RawWeights

_PUBLISHED = [model_config(f"{name}/16") for name in SIZES]
# ViT-Small of OpenMMLab and of timm before 0.4: as wide as ViT-B, with 8 heads of width 96.
_OTHERS = {(768, 8, 2304): 8}

OBJECTIVE = tuple(f.name for f in fields_of(ObjectiveConfig))
"""Names of the inferred fields that belong to the objective; the rest are of the model."""

_ASSUMED = "assumed"
_WORDS: Mapping[str, str] = {
    "num_heads": "{} heads",
    "decoder_heads": "{} decoder heads",
    "norm_eps": "norm eps {:g}",
    "image_size": "square images of {0[0]} x {0[1]}",
    "normalize_target": "a target of pixels normalised by their patch",
    "activation": "exact GELU",
    "pool": "a head on {}",
}
"""Text on an assumed field, given its value."""


class Inferred(NamedTuple):
    """Inferred fields of a network and their sources."""

    fields: dict[str, Any]
    """Fields of `ModelConfig` and `ObjectiveConfig`, without numbers of heads that are unknown."""
    sources: dict[str, str]
    """Source of each field and of the activation: described, by its shapes, by config.json, as
    given, assumed; with the option for fields assumed or unknown."""
    assumed: tuple[str, ...] = ()
    """Names of the assumed fields in `OPTIONS`: mean and std instead of pixels."""
    unknown: tuple[str, ...] = ()
    """Names of the fields that have to be given."""


class NetworkConfig(NamedTuple):
    """The network of weights."""

    model: ModelConfig
    objective: ObjectiveConfig
    """Unknown fields have their defaults."""
    notes: list[str]
    """What was loaded from the file and what is assumed."""


def infer_fields(raw: RawWeights) -> Inferred:
    """Infer the network of the weights.

    A description determines every field. Without one, sizes follow from the tensors; other fields
    come from the metadata of the file, the given options, or the usual defaults, in this order.

    Raises:
        WeightsError: if a tensor that determines a size is missing or malformed, if the patch
            grid is not square and its size is unknown, if an option contradicts the file or has
            no effect, or if the description does not match the tensors.
    """
    given, metadata = raw.given, raw.metadata
    asked: dict[str, Any] = {n: v for n, v in given.items() if v is not None and n != "take"}
    if "heads" in asked:
        asked["num_heads"] = asked.pop("heads")
    crop_pct = {"crop_pct": asked.pop("crop_pct")} if "crop_pct" in asked else {}
    shapes = _by_shapes(raw, grid=asked.get("grid"))
    stored = {n: v for n, v in metadata.fields.items() if raw.has_decoder or "decoder" not in n}
    if metadata.model is not None:
        _require_described(raw, metadata.model, shapes)
        stored = (asdict(ObjectiveConfig()) if raw.has_decoder else {}) | stored
    _require_agreement(raw, asked, {"patch_size": shapes["patch_size"], **stored})
    usual = _usual(raw, shapes, asked)
    own = {n: v for n, v in asked.items() if n not in ("grid", "mean", "std")}
    if {"mean", "std"} <= asked.keys():
        own["pixels"] = usual["pixels"]
    sources = {
        **dict.fromkeys(usual, _ASSUMED),
        **dict.fromkeys(shapes, "by its shapes"),
        "image_size": "as given" if "grid" in asked else "by its shapes, assumed square",
        **dict.fromkeys(own, "as given"),
        **dict.fromkeys(stored, metadata.source),
        **dict.fromkeys(crop_pct, "as given"),
        "activation": metadata.source if metadata.gelu else _ASSUMED,
    }
    assumed = {name for name in OPTIONS if _ASSUMED in sources.get(name, "")}
    if sources["pixels"] == _ASSUMED:
        assumed |= {"mean", "std"} - asked.keys()
        sources["pixels"] += " (--mean, --std)"
    fields = {**usual, **shapes, **own, **stored, **crop_pct}
    needed = ["num_heads", "decoder_heads"] if raw.has_decoder else ["num_heads"]
    unknown = [name for name in needed if name not in fields]
    for name in {*assumed, *unknown} & {*fields, *needed}:
        sources[name] = f"{sources.get(name, 'not said')} ({OPTIONS[name]})"
    return Inferred(fields, sources, tuple(n for n in OPTIONS if n in assumed), tuple(unknown))


def infer_config(raw: RawWeights) -> NetworkConfig:
    """Return the config of the weights, and notes on the assumptions made.

    Raises:
        WeightsError: if a field is unknown, or if file and caller disagree.
    """
    inferred = infer_fields(raw)
    if inferred.unknown:
        names = ", ".join(name.removeprefix("num_") for name in inferred.unknown)
        raise WeightsError(
            f"{raw.path}: has no published width and does not state its heads; give {names} "
            f"({', '.join(OPTIONS[name] for name in inferred.unknown)})"
        )
    notes = notes_on(raw, inferred)
    if inferred.sources.get("crop_pct") == _ASSUMED:
        notes.append(
            f"{raw.path}: does not say its crop_pct; assumed 1, as its run trained on whole images"
        )
    model = dict(inferred.fields)
    objective = ObjectiveConfig(**{name: model.pop(name) for name in OBJECTIVE if name in model})
    return NetworkConfig(replace(raw.metadata.model or ModelConfig(), **model), objective, notes)


def notes_on(
    raw: RawWeights, inferred: Inferred, *, options: Mapping[str, str] = OPTIONS
) -> list[str]:
    """Return the notes of the weights, and one line on what is assumed with the options for it.

    Args:
        raw: the weights.
        inferred: result of `infer_fields`, or one with other values for the assumed fields.
        options: command-line options by field name.
    """
    notes = [*raw.notes, *raw.metadata.notes]
    if inferred.assumed:
        parts = (f"{_text(name, inferred.fields)} ({options[name]})" for name in inferred.assumed)
        notes.append(f"{raw.path}: assumed, since it does not say: {', '.join(parts)}")
    return notes


def _text(name: str, fields: Mapping[str, Any]) -> str:
    if name in ("mean", "std"):
        return " ".join(["pixel", name, *(f"{v:g}" for v in getattr(fields["pixels"], name))])
    if name == "normalize_target" and not fields[name]:
        return "a target of plain pixels"
    return _WORDS[name].format(fields.get(name))


def _by_shapes(raw: RawWeights, *, grid: tuple[int, int] | None) -> dict[str, Any]:
    """Infer the sizes of a network from its tensor shapes."""
    width, channels, patch_size, across = _shape(raw, "encoder.patch_embed.proj.weight", ndim=4)
    if patch_size != across:
        raise WeightsError(
            f"{raw.path}: has patches of {patch_size} x {across} pixels, expected square ones; "
            "mae does not support this model"
        )
    hidden, _ = _shape(raw, "encoder.blocks.0.mlp.fc1.weight", ndim=2)
    L = _shape(raw, "encoder.pos_embed", ndim=3)[1] - 1
    edge = math.isqrt(L)
    if grid is not None and grid[0] * grid[1] != L:
        raise WeightsError(
            f"{raw.path}: grid: got {grid[0]} x {grid[1]}, its {L} patches do not make that"
        )
    if edge**2 != L and grid is None and "image_size" not in raw.metadata.fields:
        why = _unsupported(raw) or (
            f"has {L} patches, which make no square, and does not state height and width; give "
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


def _usual(raw: RawWeights, shapes: Mapping[str, Any], asked: Mapping[str, Any]) -> dict[str, Any]:
    """Return the default values of the fields that shapes do not determine."""
    D, C = shapes["width"], shapes["channels"]
    own = (D, shapes["depth"], round(D * shapes["mlp_ratio"]))
    pixels = PixelConfig() if C == 3 else PixelConfig(mean=(0.5,) * C, std=(0.5,) * C)
    usual: dict[str, Any] = {
        "num_heads": _OTHERS.get(own, {m.width: m.num_heads for m in _PUBLISHED}.get(D)),
        "norm_eps": ModelConfig().norm_eps,
        "pixels": replace(pixels, **{n: asked[n] for n in ("mean", "std") if n in asked}),
    }
    if raw.has_decoder:
        decoders = {m.decoder_width: m.decoder_heads for m in _PUBLISHED}
        usual["decoder_heads"] = decoders.get(shapes["decoder_width"])
        usual["normalize_target"] = True
    usual |= {n: v for n, v in raw.metadata.assumed.items() if n in usual or n == "crop_pct"}
    return {name: value for name, value in usual.items() if value is not None}


def _require_agreement(
    raw: RawWeights, asked: Mapping[str, Any], stored: Mapping[str, Any]
) -> None:
    """Reject options that contradict the file or have no effect."""
    unused = asked.keys() & {"decoder_heads", "normalize_target"}
    if unused and not raw.has_decoder:
        raise WeightsError(
            f"{' and '.join(sorted(unused))}: no effect, no decoder is taken from {raw.path}; "
            "leave it out"
        )
    own = dict(stored)
    if "pixels" in stored:
        own |= {name: getattr(stored["pixels"], name) for name in ("mean", "std")}
    if "image_size" in stored:
        own["grid"] = tuple(edge // stored["patch_size"] for edge in stored["image_size"])
    wrong = {name: value for name, value in asked.items() if own.get(name, value) != value}
    if wrong:
        held = {name: own[name] for name in wrong}
        raise WeightsError(
            f"{', '.join(wrong).replace('num_', '')}: got {wrong}, but {raw.path} says {held}; "
            "leave it out"
        )


def _require_described(raw: RawWeights, model: ModelConfig, shapes: Mapping[str, Any]) -> None:
    """Reject a description that does not match the tensors, before allocating the network."""
    described = {name: getattr(model, name) for name in shapes}
    described["mlp_ratio"] = hidden_width(model.width, model.mlp_ratio) / model.width
    described["image_size"] = f"{model.num_patches} patches"
    L = raw.tensors["encoder.pos_embed"].shape[1] - 1
    for name, held in {**shapes, "image_size": f"{L} patches"}.items():
        if described[name] != held:
            raise WeightsError(
                f"{raw.path}: its description says {name} {described[name]}, its tensors {held}; "
                "restore the folder as it was written"
            )


def _shape(raw: RawWeights, name: str, *, ndim: int) -> tuple[int, ...]:
    shape = tuple(raw.tensors[name].shape) if name in raw.tensors else ()
    if len(shape) != ndim or 0 in shape:
        why = _unsupported(raw) or (
            f"{raw.rename(name)} is {f'of shape {shape}' if shape else 'missing'}, expected {ndim} "
            "dimensions; get the whole file"
        )
        raise WeightsError(f"{raw.path}: {why}")
    return shape


def _unsupported(raw: RawWeights) -> str:
    """Describe tensors of an unsupported network, whose sizes cannot be inferred."""
    unknown = [name for name in raw.tensors if name.startswith(UNKNOWN)]
    is_encoder = "encoder.patch_embed.proj.weight" in raw.tensors
    absent = [n for n in ("encoder.cls_token",) if is_encoder and n not in raw.tensors]
    cause = unsupported(raw, missing=absent, unexpected=unknown)
    counts = count_names(raw, {"unexpected": unknown, "missing": absent}, {})
    return f"{counts}; {cause}" if cause else ""


def _depth(raw: RawWeights, prefix: str) -> int:
    # Count distinct numbers: a gap then shows up as missing and unexpected blocks.
    return len({name.split(".")[2] for name in raw.tensors if name.startswith(prefix)})
