"""Hugging Face transformers layout: a folder of config.json and model.safetensors.

Blocks have two naming schemes, and transformers 5 writes decoders in a third. Readable are
ViTMAEForPreTraining, ViTMAEModel (an encoder, with or without the prefix `vit.`) and
ViTForImageClassification (on the cls token). Written is the older scheme, which every version
loads.

Source: names and defaults of transformers 5.24 (ViTMAEConfig, ViTImageProcessor).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, NamedTuple, TypeVar

from safetensors.torch import save as to_safetensors
from torch import Tensor

from mae.atomic import write_atomic, write_json_atomic
from mae.config.model import ModelConfig, PixelConfig, hidden_width
from mae.config.objective import ObjectiveConfig
from mae.config.serialize import from_dict
from mae.errors import ConfigError, WeightsError
from mae.weights.formats.name_table import (
    ClassifierDescription,
    Description,
    Layout,
    Metadata,
    Table,
    block_names,
    renamed,
    split_qkv,
)
from mae.weights.formats.native import CONFIG, TENSORS
from mae.weights.io.file_checks import read_json

PROCESSOR = "preprocessor_config.json"

ENCODER = {
    "encoder.cls_token": "embeddings.cls_token",
    "encoder.pos_embed": "embeddings.position_embeddings",
    "encoder.patch_embed.proj": "embeddings.patch_embeddings.projection",
    "encoder.norm": "layernorm",
}
_ENCODER = ENCODER | {"unused.pooler": "pooler.dense"}
_DECODER = {
    "decoder.mask_token": "decoder.mask_token",
    "decoder.pos_embed": "decoder.decoder_pos_embed",
    "decoder.embed": "decoder.decoder_embed",
    "decoder.norm": "decoder.decoder_norm",
    "decoder.pred": "decoder.decoder_pred",
    "head": "classifier",
}
OLDER_ATTENTION = {
    "attn.q": "attention.attention.query",
    "attn.k": "attention.attention.key",
    "attn.v": "attention.attention.value",
    "attn.proj": "attention.output.dense",
}
NEWER_ATTENTION = {
    "attn.q": "attention.q_proj",
    "attn.k": "attention.k_proj",
    "attn.v": "attention.v_proj",
    "attn.proj": "attention.o_proj",
}
_NORMS = {"norm1": "layernorm_before", "norm2": "layernorm_after"}
_OLDER_LAYERS = (
    _NORMS | OLDER_ATTENTION | {"mlp.fc1": "intermediate.dense", "mlp.fc2": "output.dense"}
)
_NEWER_LAYERS = _NORMS | NEWER_ATTENTION | {"mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"}


def _table(prefix: str, blocks: str, decoder_blocks: str, layers: Mapping[str, str]) -> Table:
    encoder = _ENCODER | block_names("encoder.blocks", blocks, layers)
    decoder = _DECODER | block_names("decoder.blocks", decoder_blocks, layers)
    return {ours: prefix + theirs for ours, theirs in encoder.items()} | decoder


_OLDER = _table("vit.", "encoder.layer", "decoder.decoder_layers", _OLDER_LAYERS)
_BARE = _table("", "encoder.layer", "decoder.decoder_layers", _OLDER_LAYERS)
TABLES = (
    _OLDER,
    # Decoder names that transformers 5.24 writes when it saves in the older scheme.
    _table("vit.", "encoder.layer", "decoder.decoder_encoder.layer", _OLDER_LAYERS),
    _table("vit.", "layers", "decoder.decoder_layers", _NEWER_LAYERS),
    _BARE,
    _table("", "layers", "decoder.decoder_layers", _NEWER_LAYERS),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class ViTFields:
    """Fields read from the config.json of any model; the defaults are those of transformers."""

    num_attention_heads: int = 12
    hidden_act: Literal["gelu"] = "gelu"
    qkv_bias: Literal[True] = True
    layer_norm_eps: float = 1e-12
    image_size: tuple[int, int] = (224, 224)
    patch_size: int = 16
    num_channels: int = 3


ConfigT = TypeVar("ConfigT", bound=ViTFields)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Config(ViTFields):
    decoder_num_attention_heads: int = 16
    mask_ratio: float = 0.75
    norm_pix_loss: bool = False


class Stored(NamedTuple, Generic[ConfigT]):
    """What config.json and preprocessor_config.json say."""

    config: ConfigT
    fields: dict[str, Any]
    """Those fields of `ModelConfig` that are the same for every model of transformers."""
    values: Mapping[str, Any]
    """The contents of config.json; empty without one."""
    where: Path
    """Path of config.json."""


def read_configs(file: Path, cls: type[ConfigT]) -> Stored[ConfigT]:
    """Read config.json and preprocessor_config.json next to a file.

    Args:
        file: the file with the tensors.
        cls: the fields to read, with the defaults of transformers.

    Raises:
        WeightsError: for a model that mae does not support.
    """
    where = file.with_name(CONFIG)
    values, processor = _read(where), _read(file.with_name(PROCESSOR))
    known = {name: values[name] for name in cls.__dataclass_fields__ if name in values}
    if isinstance(known.get("image_size"), int):
        known["image_size"] = [known["image_size"]] * 2
    if isinstance(edges := known.get("patch_size"), list) and edges == edges[:1] * 2:
        known["patch_size"] = edges[0]
    fields = dict[str, Any]()
    try:
        config = from_dict(cls, known, where=str(where))
        pixels = _pixels(processor, channels=config.num_channels)
    except ConfigError as error:
        raise WeightsError(f"{where.parent}: {error}; mae does not support this model") from error
    crop_pct = processor.get("crop_pct")  # only in files written by mae
    if isinstance(crop_pct, float) and 0 < crop_pct <= 1:
        fields["crop_pct"] = crop_pct
    if "image_size" in values:
        fields["image_size"] = config.image_size
    if pixels is not None:
        fields["pixels"] = pixels
    return Stored(config, fields, values, where)


def _read_metadata(_: Mapping[str, Any], file: Path, _tensors: Mapping[str, Tensor]) -> Metadata:
    config, fields, stored, where = read_configs(file, _Config)
    # Fields missing from config.json have their defaults; without the file, these are guesses.
    usual = {"norm_eps": config.layer_norm_eps, "normalize_target": config.norm_pix_loss}
    heads, decoder_heads = config.num_attention_heads, config.decoder_num_attention_heads
    notes = list[str]()
    if stored:
        fields |= usual | {"num_heads": heads, "decoder_heads": decoder_heads}
    # Often set to 0 for feature extraction; training needs a value above 0.
    if 0 < config.mask_ratio < 1:
        fields["mask_ratio"] = config.mask_ratio
    else:
        notes.append(f"{where}: a mask ratio of {config.mask_ratio:g} hides nothing; assumed 0.75")
    return Metadata(
        fields, f"by {CONFIG}", assumed=usual, gelu=bool(stored), pool="cls", notes=tuple(notes),
        class_names=_class_names(stored.get("id2label"), where=where),
    )  # fmt: skip


def _class_names(labels: Any, *, where: Path) -> tuple[str, ...]:
    if not isinstance(labels, Mapping):
        return ()
    # In numeric order: some files have "10" before "2".
    names = [labels.get(str(number)) for number in range(len(labels))]
    if None in names:
        raise WeightsError(f"{where}: id2label: expected a name for each of 0, 1 ...")
    return tuple(map(str, names))


def _read(path: Path) -> dict[str, Any]:
    values = read_json(path)
    if not isinstance(values, dict):
        raise WeightsError(f"{path}: expected named values, got {type(values).__name__}")
    return values


def _pixels(processor: Mapping[str, Any], *, channels: int) -> PixelConfig | None:
    if not processor:
        return None
    normalised = processor.get("do_normalize", True)
    factor = processor.get("rescale_factor", 1 / 255) if processor.get("do_rescale", True) else 1.0
    ranges = {"uint8": 255.0, "uint16": 65535.0, "float32": 1.0}
    known = type(factor) is float
    dtype = next((d for d, full in ranges.items() if known and abs(factor * full - 1) < 1e-6), None)
    if dtype is None:
        raise ConfigError(f"rescale_factor: expected 1/255, 1/65535 or none, got {factor!r}")
    half = [0.5] * channels  # default of ViTImageProcessor
    mean = processor.get("image_mean", half) if normalised else [0.0] * channels
    std = processor.get("image_std", half) if normalised else [1.0] * channels
    return from_dict(PixelConfig, {"dtype": dtype, "mean": mean, "std": std}, where=PROCESSOR)


def _refuses(description: Description, names: Collection[str]) -> str | None:
    model, objective = description.model, description.objective or ObjectiveConfig()
    if model.grid[0] != model.grid[1]:
        return f"its grid of patches is square, that of this model {model.grid}"
    if isinstance(description, ClassifierDescription) and description.pool == "mean":
        return "it classifies the cls token, this model the mean of the patches (fc_norm)"
    if not any(name.startswith("decoder.") for name in names):
        return None
    if objective.target_eps != 1e-6:
        return f"its target has an eps of 1e-6, that of this model {objective.target_eps:g}"
    ratio, normalize = objective.mask_ratio, objective.normalize_target
    if objective != ObjectiveConfig(mask_ratio=ratio, normalize_target=normalize):
        return "it masks at random, this model otherwise"
    L, kept = model.num_patches, objective.num_keep(model.num_patches)
    if (theirs := int(L * (1 - ratio))) != kept:
        return f"it keeps {theirs} of {L} patches at a mask ratio of {ratio}, this model {kept}"
    return None


def encoder_fields(model: ModelConfig) -> dict[str, Any]:
    """Return the arguments of the encoder that all models of transformers share."""
    return {
        "hidden_size": model.width,
        "num_hidden_layers": model.depth,
        "num_attention_heads": model.num_heads,
        "hidden_act": "gelu",
        "qkv_bias": True,
        "layer_norm_eps": model.norm_eps,
        "image_size": model.image_size[0],
        "patch_size": model.patch_size,
        "num_channels": model.channels,
    }


def config_fields(model: ModelConfig, objective: ObjectiveConfig) -> dict[str, Any]:
    """Return the arguments of `ViTMAEConfig` for a model of square images."""
    return encoder_fields(model) | {
        "intermediate_size": hidden_width(model.width, model.mlp_ratio),
        "decoder_num_attention_heads": model.decoder_heads,
        "decoder_hidden_size": model.decoder_width,
        "decoder_num_hidden_layers": model.decoder_depth,
        "decoder_intermediate_size": hidden_width(model.decoder_width, model.mlp_ratio),
        "mask_ratio": objective.mask_ratio,
        "norm_pix_loss": objective.normalize_target,
    }


def _write(path: Path, tensors: Mapping[str, Tensor], description: Description) -> None:
    """Write a folder that `from_pretrained` of transformers loads."""
    config = config_fields(description.model, description.objective or ObjectiveConfig())
    decodes = any(name.startswith("decoder.") for name in tensors)
    name, model_type = ("ViTMAEForPreTraining" if decodes else "ViTMAEModel"), "vit_mae"
    if isinstance(description, ClassifierDescription):
        name, model_type = "ViTForImageClassification", "vit"
        of_autoencoder = ("decoder_", "mask_ratio", "norm_pix_loss")
        config = {key: v for key, v in config.items() if not key.startswith(of_autoencoder)}
        labels = dict(enumerate(description.class_names))
        config |= {"id2label": labels, "label2id": {label: i for i, label in labels.items()}}
    about = {"architectures": [name], "model_type": model_type, "torch_dtype": "float32"}
    table = _BARE if name == "ViTMAEModel" else _OLDER
    write_folder(path, about | config, renamed(table, split_qkv(tensors)), description.model)


def write_folder(
    path: Path, config: Mapping[str, Any], named: Mapping[str, Tensor], model: ModelConfig
) -> None:
    """Write config.json, preprocessor_config.json and model.safetensors."""
    write_json_atomic(path / CONFIG, config)
    write_json_atomic(path / PROCESSOR, _processor(model))
    write_atomic(path / TENSORS, to_safetensors(dict(named), {"format": "pt"}))


def _processor(model: ModelConfig) -> dict[str, Any]:
    pixels, (H, W) = model.pixels, model.image_size
    # ViTImageProcessor resizes without cropping; other readers use crop_pct as timm does.
    kept = {} if model.crop_pct is None else {"crop_pct": model.crop_pct}
    return kept | {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": H, "width": W},
        "resample": 3,  # bicubic
        "do_rescale": pixels.dtype != "float32",
        "rescale_factor": 1 / pixels.full_range,
        "do_normalize": True,
        "image_mean": list(pixels.mean),
        "image_std": list(pixels.std),
    }


LAYOUT = Layout("huggingface", TABLES, _read_metadata, _write, _refuses)
