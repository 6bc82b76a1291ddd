"""What a file or folder of weights holds, without making a model of it."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Any, Literal, NamedTuple

from mae.fields import to_dict
from mae.network import PixelConfig
from mae.sizes import size_name
from mae.weights.detect import Format, RawWeights, find_file, name_tensors, read_file
from mae.weights.files import is_finite
from mae.weights.folder import ClassifierDescription
from mae.weights.hub import local
from mae.weights.shapes import read_fields
from mae.weights.sharded import is_index
from mae.weights.suspect import kind_of

# The first digits of the md5 of each published file, by size and whether it is fine-tuned.
# Source: spec 4.6, [FB] README and FINETUNE.md.
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
    pool: Literal["mean", "cls"] | None
    """What the head classifies."""
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
    """How each of them is known: described, by the run's arguments, its shapes, digest, assumed."""

    def rows(self) -> list[tuple[str, str, str]]:
        """Give the lines of a table: what, its value, and how it is known."""
        left = {"model", "told"}
        # Of few files: that they are not is no news.
        left |= {n for n in ("num_classes", "pool", "published_file") if getattr(self, n) is None}
        facts = {name: value for name, value in self._asdict().items() if name not in left}
        return [
            (name.replace("_", " "), _shown(value), self.told.get(name, ""))
            for name, value in {**facts, **self.model}.items()
        ]


def inspect(path: str | Path) -> Inspection:
    """Look into weights of any format that can be loaded.

    Shapes are read without the values. These are then looked at a few tensors at a time, so that
    a file of any size needs little memory (PyTorch's files from before 1.6 are read as a whole).

    Raises:
        WeightsError: for what is no weights, or cannot be read.
    """
    file = find_file(local(path))
    tensors, beside = read_file(file)
    # Named without their values, since some layouts put several together as one of ours.
    raw = name_tensors(file, {name: t.to("meta") for name, t in tensors.items()}, beside)
    # Given up early: a file that is not mapped would lie in memory twice.
    del tensors, beside
    fields = read_fields(raw)
    size = size_name(**{name: fields[name] for name in ("width", "depth", "patch_size")})
    head = raw.tensors.get("head.weight")
    num_classes = None if head is None else len(head)
    facts = raw.description.facts if raw.description else {}
    published = _published_file(raw, size=size, num_classes=num_classes, fields=fields)
    told = {name: _how_told(raw, name) for name in fields}
    for name, value in _untold(raw, published=published).items():
        if name not in fields:
            fields[name], told[name] = value, "by its digest" if published else "assumed"
    return Inspection(
        path=str(raw.path),
        format=raw.format,
        size=size,
        has_decoder=raw.has_decoder,
        num_classes=num_classes,
        pool=None if head is None else _pool(raw),
        published_file=published,
        license=_LICENSE if published else str(facts["license"]) if "license" in facts else None,
        tensors=len(raw.tensors),
        parameters=sum(tensor.numel() for tensor in raw.tensors.values()),
        not_finite=_count_not_finite(file),
        model={n: to_dict(v) if isinstance(v, PixelConfig) else v for n, v in fields.items()},
        told=told,
    )


def _how_told(raw: RawWeights, name: str) -> str:
    if raw.description is not None:
        return "described"
    if name in raw.known:
        return "by the run's arguments" if raw.format == "facebook" else "described"
    if name.endswith("_heads"):
        return "assumed by its width"
    return "assumed" if name == "pixels" else "by its shapes"


def _untold(raw: RawWeights, *, published: str | None) -> dict[str, Any]:
    """Give what loading would assume, or what is known of a published file."""
    assumed: dict[str, Any] = {"pixels": PixelConfig()}
    if raw.has_decoder or (published and "pretrain" in published):
        assumed["normalize_target"] = True
    return assumed


def _pool(raw: RawWeights) -> Literal["mean", "cls"]:
    if isinstance(raw.description, ClassifierDescription):
        return raw.description.pool
    return "mean" if "fc_norm.weight" in raw.tensors else "cls"


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


def _count_not_finite(file: Path) -> int:
    mapped = is_index(file) or kind_of(file) != "pickle"
    at_once = _AT_ONCE if mapped else math.inf
    count, done, total = 0, 0, 1
    while done < total:
        tensors = list(read_file(file).tensors.values())
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
