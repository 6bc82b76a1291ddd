"""Inspect a weights file or folder without building a model."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Any, NamedTuple

from mae.config.model import PixelConfig
from mae.config.serialize import to_dict
from mae.config.sizes import size_name
from mae.weights.formats.native import ClassifierDescription
from mae.weights.given import OPTIONS, Take
from mae.weights.infer_config import ASSUMED, Known, read_fields
from mae.weights.io.file_checks import kind_of
from mae.weights.io.hub import local
from mae.weights.io.safe_load import is_finite
from mae.weights.io.sharded import is_index
from mae.weights.read import Format, RawWeights, find_file, name_tensors, read_file

# The first digits of the md5 of each published file, by size and whether it is fine-tuned.
# Source: README.md and FINETUNE.md of the published code.
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

# Bytes of values that are looked at before a mapped file is closed and opened anew: so long they
# stay in memory.
_AT_ONCE = 2**25


class Inspection(NamedTuple):
    """What was found, as plain values: `_asdict()` is what JSON shows."""

    path: str
    format: Format
    size: str
    """By its name where it has one: vit-b/16."""
    has_decoder: bool
    num_classes: int | None
    """Of a classifier's head; none where there is no head."""
    pool: str | None
    """What the head classifies: mean, cls, or what no classifier here does."""
    activation: str
    published_file: str | None
    """The published file whose digest it has."""
    license: str | None
    """As the file's description says, or known by its digest."""
    tensors: int
    parameters: int
    """Values of all tensors, position tables included."""
    not_finite: int
    """Values that are NaN or infinite."""
    model: dict[str, Any]
    """Fields of `ModelConfig` as far as the file tells them, or loading would assume them."""
    told: dict[str, str]
    """How each of them, pool and activation are known: described, by config.json, by the run's
    arguments, by its shapes or digest, assumed (with the option that overrides it)."""
    notes: tuple[str, ...]
    """What was taken and left, where there was a choice."""

    def rows(self) -> list[tuple[str, str, str]]:
        """Give the lines of a table: what, its value, and how it is known."""
        left = {"model", "told", "notes"}
        # Of few files: that they are not is no news.
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
    """Look into weights of any format that can be loaded.

    Shapes are read without the values. These are then looked at a few tensors at a time, so that
    a file of any size needs little memory (PyTorch's files from before 1.6 are read as a whole).

    Args:
        path: whatever `load_encoder` takes, or a classifier.
        take: which of several networks in one file.

    Raises:
        WeightsError: for what is no weights, or cannot be read.
    """
    file = find_file(local(path))
    tensors, beside, chosen = read_file(file, take=take)
    # Named without their values, since some layouts put several together as one of ours.
    raw = name_tensors(file, {name: t.to("meta") for name, t in tensors.items()}, beside)
    # Given up early: a file that is not mapped would lie in memory twice.
    del tensors, beside
    known = read_fields(raw)
    fields = known.fields
    size = size_name(**{name: fields[name] for name in ("width", "depth", "patch_size")})
    head = raw.tensors.get("head.weight")
    num_classes = None if head is None else len(head)
    facts = raw.description.facts if raw.description else {}
    published = _published_file(raw, size=size, num_classes=num_classes, fields=fields)
    pool, of_pool = (None, {}) if head is None else _pool(raw)
    told = _told(raw, known, published=published) | of_pool
    if published and "pretrain" in published:  # whose decoder is in another file
        fields["normalize_target"], told["normalize_target"] = True, "by its digest"
    return Inspection(
        path=str(raw.path),
        format=raw.format,
        size=size,
        has_decoder=raw.has_decoder,
        num_classes=num_classes,
        pool=pool,
        activation="exact GELU",
        published_file=published,
        license=_LICENSE if published else str(facts["license"]) if "license" in facts else None,
        tensors=len(raw.tensors),
        parameters=sum(tensor.numel() for tensor in raw.tensors.values()),
        not_finite=_count_not_finite(file, take=take),
        model={n: to_dict(v) if isinstance(v, PixelConfig) else v for n, v in fields.items()},
        told=told,
        notes=(*chosen, *raw.notes, *raw.facts.notes),
    )


def _told(raw: RawWeights, known: Known, *, published: str | None) -> dict[str, str]:
    """Say how each fact is known, with the option for what is assumed or not known at all."""
    told = dict(known.how)
    unsaid = [*known.unsaid]
    if raw.description is None:
        needed = ("num_heads", "decoder_heads") if raw.has_decoder else ("num_heads",)
        unsaid += [name for name in needed if name not in known.fields]
    told["activation"] = f"by {raw.facts.source}" if raw.facts.gelu else ASSUMED
    if raw.description is not None:
        told["activation"] = "described"
    for name in unsaid:
        if published:
            told["pixels" if name in ("mean", "std") else name] = "by its digest"
        elif name in ("mean", "std"):
            told["pixels"] = f"{ASSUMED} (--mean, --std)"
        elif name in OPTIONS:
            told[name] = f"{told.get(name, 'not said')} ({OPTIONS[name]})"
    if published:
        told |= {"activation": "by its digest"}
    told.pop("gelu", None)
    return told


def _pool(raw: RawWeights) -> tuple[str, dict[str, str]]:
    """Give what a head classifies, and how that is known."""
    if isinstance(raw.description, ClassifierDescription):
        return raw.description.pool, {"pool": "described"}
    if raw.facts.pool is not None:
        return raw.facts.pool, {"pool": f"by {raw.facts.source}"}
    found = "mean" if "fc_norm.weight" in raw.tensors else "cls"
    return found, {"pool": f"{ASSUMED} by its norm ({OPTIONS['pool']})"}


def _published_file(
    raw: RawWeights, *, size: str, num_classes: int | None, fields: dict[str, Any]
) -> str | None:
    """Name the published file that this is, to the digest.

    Only what has the layout, shapes and length of one is read for its digest.
    """
    kind = "pretrain" if num_classes is None else "finetuned"
    digest = _DIGESTS.get((_SIZES.get(size, ""), kind))
    bare = raw.description is None and not raw.has_decoder and num_classes in (None, 1000)
    if digest is None or raw.format != "facebook" or not bare:
        return None
    if is_index(raw.path) or kind_of(raw.path) == "safetensors":
        return None
    pictures = (fields["channels"], *fields["image_size"])
    values = sum(tensor.nbytes for tensor in raw.tensors.values())
    if pictures != (3, 224, 224) or not values < raw.path.stat().st_size < 1.01 * values:
        return None
    with raw.path.open("rb") as file:
        if not hashlib.file_digest(file, "md5").hexdigest().startswith(digest):
            return None
    return f"mae_{kind}_vit_{_SIZES[size]}.pth"


def _count_not_finite(file: Path, *, take: Take | None) -> int:
    mapped = is_index(file) or kind_of(file) != "pickle"
    at_once = _AT_ONCE if mapped else math.inf
    count, done, total = 0, 0, 1
    while done < total:
        tensors = list(read_file(file, take=take).tensors.values())
        total, seen = len(tensors), 0
        for tensor in tensors[done:]:
            if not is_finite(tensor):
                # Of the smallest floating-point types, only conversion is written.
                values = tensor.float() if tensor.itemsize == 1 else tensor
                count += int((~values.isfinite()).sum())
            done, seen = done + 1, seen + tensor.nbytes
            if seen >= at_once:
                break
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
