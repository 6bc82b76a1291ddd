"""Inspect the contents of weight files without building a model."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Any, NamedTuple

from mae.config.model import PixelConfig
from mae.config.serialize import to_dict
from mae.config.sizes import size_name
from mae.weights.formats import vitdet
from mae.weights.given import OPTIONS, Take
from mae.weights.infer_config import infer_config, infer_fields
from mae.weights.io.file_checks import kind_of
from mae.weights.io.safe_load import is_finite, read_tensors
from mae.weights.load import head_pool
from mae.weights.load_backbone import inspection_notes
from mae.weights.read import RawWeights, read_weights

# First digits of the md5 of each published file, by model size and stage.
# Source: README.md and FINETUNE.md of github.com/facebookresearch/mae.
_DIGESTS = {
    ("base", "pretrain"): "8cad7c",
    ("large", "pretrain"): "b8b06e",
    ("huge", "pretrain"): "9bdbb0",
    ("base", "finetuned"): "1b25e9",
    ("large", "finetuned"): "51f550",
    ("huge", "finetuned"): "2541f2",
}
_SIZES = {"vit-b/16": "base", "vit-l/16": "large", "vit-h/14": "huge"}
_LICENSE = "CC-BY-NC 4.0, not for commercial use"

# Bytes of values that are read before a mapped file is closed and reopened, since they stay in
# memory until then.
_AT_ONCE = 2**25


class Inspection(NamedTuple):
    """Result of an inspection as plain values; `_asdict()` is the JSON output."""

    path: str
    format: str
    size: str
    """Name of the model size if it has one: vit-b/16."""
    has_decoder: bool
    num_classes: int | None
    """Number of classes of the head; None without a head."""
    pool: str | None
    """Pooled feature that the head classifies: mean, cls, or an unsupported one."""
    activation: str
    published_file: str | None
    """Name of the published file with the same digest."""
    license: str | None
    """From the description of the file, or known by its digest."""
    tensors: int
    parameters: int
    """Number of values of all tensors, including position embeddings."""
    not_finite: int
    """Number of values that are NaN or infinite."""
    model: dict[str, Any]
    """Fields of `ModelConfig` that the file determines or loading would assume."""
    told: dict[str, str]
    """Source of each of them, and of pool and activation: described, by config.json, by the run's
    arguments, by its shapes or digest, assumed (with the option that overrides it)."""
    notes: tuple[str, ...]
    """What was loaded and skipped, if there was a choice."""

    def rows(self) -> list[tuple[str, str, str]]:
        """Return the table rows: name, value, source."""
        left = {"model", "told", "notes"}
        # These apply to few files; None is not shown.
        left |= {n for n in ("num_classes", "pool", "published_file") if getattr(self, n) is None}
        facts = {name: value for name, value in self._asdict().items() if name not in left}
        unknown = {name: None for name in self.told if name not in facts | self.model}
        return [
            *(
                (name.replace("_", " "), _shown(value), self.told.get(name, ""))
                for name, value in {**facts, **self.model, **unknown}.items()
            ),
            *(("note", note, "") for note in self.notes),
        ]


def inspect(path: str | Path, *, take: Take | None = None) -> Inspection:
    """Inspect weights of any format that can be loaded.

    Shapes are read without the values. The values are then read a few tensors at a time, so that
    a file of any size needs little memory (files from before PyTorch 1.6 are read as a whole).

    Args:
        path: any path that `load_encoder` accepts, or a classifier.
        take: network to inspect in a file with several.

    Raises:
        WeightsError: for a path without weights, or weights that cannot be read.
    """
    # Without values, since for some layouts renaming concatenates tensors.
    raw = read_weights(path, values=False, take=take)
    fields, sources, assumed, _ = infer_fields(raw)
    size = size_name(**{name: fields[name] for name in ("width", "depth", "patch_size")})
    head = raw.tensors.get("head.weight")
    logits = raw.tensors.get("head.classify.conv.weight", head)  # of a segmenter
    num_classes = None if logits is None else len(logits)
    if raw.metadata.detector is not None:
        num_classes = len(raw.metadata.class_names)
    published = _published_file(raw, size=size, num_classes=num_classes, fields=fields)
    if head is not None:
        sources["pool"] = raw.metadata.source
        if raw.metadata.pool is None:
            sources["pool"] = f"assumed by its norm ({OPTIONS['pool']})"
    if published:
        known = {"pixels" if name in ("mean", "std") else name for name in assumed}
        if num_classes is None:  # the decoder was published in a separate file
            fields["normalize_target"] = True
            known.add("normalize_target")
        sources |= dict.fromkeys(known, "by its digest")
    stated = raw.metadata.facts.get("license")
    return Inspection(
        path=str(raw.path),
        format=raw.format,
        size=size,
        has_decoder=raw.has_decoder,
        num_classes=num_classes,
        pool=None if head is None else head_pool(raw),
        activation="exact GELU",
        published_file=published,
        license=_LICENSE if published else None if stated is None else str(stated),
        tensors=len(raw.tensors),
        parameters=sum(tensor.numel() for tensor in raw.tensors.values()),
        not_finite=_count_not_finite(raw.path, take=take),
        model={n: to_dict(v) if isinstance(v, PixelConfig) else v for n, v in fields.items()},
        told=sources,
        notes=(*raw.notes, *raw.metadata.notes, *_of_detector(raw)),
    )


def _of_detector(raw: RawWeights) -> list[str]:
    """Describe what is taken of a detector and what is left; empty for other weights."""
    if raw.format != vitdet.NAME:
        return []
    return inspection_notes(raw, infer_config(raw.encoder()).model)


def _published_file(
    raw: RawWeights, *, size: str, num_classes: int | None, fields: dict[str, Any]
) -> str | None:
    """Return the name of the published file with the same digest; None if there is none.

    The digest is computed only for a file whose layout, shapes and size match.
    """
    stage = "pretrain" if num_classes is None else "finetuned"
    digest = _DIGESTS.get((_SIZES.get(size, ""), stage))
    bare = raw.metadata.model is None and not raw.has_decoder and num_classes in (None, 1000)
    if digest is None or raw.format != "facebook" or not bare:
        return None
    shape = (fields["channels"], *fields["image_size"])
    values = sum(tensor.nbytes for tensor in raw.tensors.values())
    fits = shape == (3, 224, 224) and values < raw.path.stat().st_size < 1.01 * values
    if not fits or kind_of(raw.path) not in ("zip", "pickle"):
        return None
    with raw.path.open("rb") as file:
        found = hashlib.file_digest(file, "md5").hexdigest()
    return f"mae_{stage}_vit_{_SIZES[size]}.pth" if found.startswith(digest) else None


def _count_not_finite(file: Path, *, take: Take | None) -> int:
    at_once = math.inf if kind_of(file) == "pickle" else _AT_ONCE
    count, done, total = 0, 0, 1
    while done < total:
        tensors = list(read_tensors(file, take=take).tensors.values())
        total, size = len(tensors), 0
        while done < total and size < at_once:
            tensor = tensors[done]
            if not is_finite(tensor):
                # PyTorch supports only conversion for 8-bit floating-point types.
                values = tensor.float() if tensor.itemsize == 1 else tensor
                count += int((~values.isfinite()).sum())
            done, size = done + 1, size + tensor.nbytes
        del tensors
    return count


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (tuple, list)):
        return (" x " if all(isinstance(v, int) for v in value) else " ").join(map(str, value))
    if isinstance(value, dict):
        return ", ".join(f"{name} {_shown(part)}" for name, part in value.items())
    if value is None:
        return "not stated"
    return f"{value:,}" if isinstance(value, int) else str(value)
