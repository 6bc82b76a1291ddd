"""Compare two weight files: tensors, model configs and outputs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, Unpack

import torch
from torch import Tensor

from mae.config.model import ModelConfig
from mae.config.objective import ObjectiveConfig
from mae.config.serialize import to_dict
from mae.errors import WeightsError
from mae.model.masking import random_masking
from mae.model.normalize import denormalize_pixels, normalize_pixels
from mae.weights.classifier import HeadPool, open_classifier
from mae.weights.given import Given
from mae.weights.infer_config import config_of
from mae.weights.load import open_encoder, open_model
from mae.weights.read import RawWeights, read_weights

SAME = 1e-5  # relative to the largest value; allows for float32 summation order only
IMAGES = 2
_SHOWN = 20
_OF_DECODER = {"decoder_heads", "normalize_target"}


class Apart(NamedTuple):
    """Difference between two tensors or two outputs."""

    name: str
    largest: float | None
    """Largest absolute difference; None if shapes differ or values are not finite."""
    relative: float | None
    """The same, divided by the largest absolute value of the first."""
    shapes: tuple[tuple[int, ...], tuple[int, ...]] | None = None
    """Both shapes if they differ."""


class Difference(NamedTuple):
    """Result of comparing two weight files."""

    a: str
    b: str
    same: bool
    """Whether both give the same outputs for the same images and mask."""
    in_both: int
    differing: list[Apart]
    """Tensors in both that are not equal, largest difference first."""
    only_a: list[str]
    only_b: list[str]
    fields: dict[str, tuple[Any, Any]]
    """Model config fields that differ."""
    outputs: list[Apart]
    """Differences of the outputs that both have, for the same images and mask."""
    notes: list[str]
    """What could not be compared, and why."""
    assumed: list[str]
    """Networks selected from files with several, and assumptions."""

    def values(self) -> dict[str, object]:
        """Return the values that --json prints."""
        named = {
            name: [t._asdict() for t in getattr(self, name)] for name in ("differing", "outputs")
        }
        return self._asdict() | named

    def rows(self) -> Iterator[tuple[str, ...]]:
        """Yield the table rows."""
        yield "a", self.a
        yield "b", self.b
        for line in self.assumed:
            yield "note", line
        yield "tensors", f"{self.in_both:,} in both, {len(self.differing):,} of them differ"
        for which, names in (("a", self.only_a), ("b", self.only_b)):
            if names:
                more = f" and {len(names) - 5:,} more" if len(names) > 5 else ""
                yield f"only in {which}", ", ".join(names[:5]) + more
        for tensor in self.differing[:_SHOWN]:
            yield f"  {tensor.name}", _said(tensor)
        if len(self.differing) > _SHOWN:
            yield "  ...", f"{len(self.differing) - _SHOWN:,} more; --json lists them all"
        for name, (a, b) in self.fields.items():
            yield name, f"{a} in a, {b} in b"
        for output in self.outputs:
            yield output.name, _said(output)
        for note in self.notes:
            yield "note", note
        yield "verdict", f"{'the same' if self.same else 'not the same'} function"


def diff(
    a: str | Path, b: str | Path, *, pool: HeadPool | None = None, **given: Unpack[Given]
) -> Difference:
    """Compare two weight files of any format, by tensors and by outputs.

    Args:
        a: any path that `load_encoder` accepts, or a classifier.
        b: likewise.
        pool: pooled feature that the heads classify, if a file does not say.
        given: other settings that a file does not say, see `Given`; applied to both.

    Raises:
        WeightsError: if either cannot be read.
    """
    raws = [read_weights(path, take=given.get("take")) for path in (a, b)]
    first, second = (raw.tensors for raw in raws)
    both = [name for name in first if name in second]
    apart = [_apart(n, first[n], second[n]) for n in both if not _equal(first[n], second[n])]
    outputs, fields, notes = list[Apart](), dict[str, tuple[Any, Any]](), list[str]()
    assumed = list[str]()
    try:
        one, two = (
            _open(path, raw, pool=pool, **given) for path, raw in zip((a, b), raws, strict=True)
        )
    except WeightsError as error:
        notes.append(f"what they do is not compared: {error}")
    else:
        fields, assumed = _fields_apart(one, two), [*one.assumed, *two.assumed]
        outputs, notes = _outputs_apart(one, two)
    return Difference(
        a=str(raws[0].path),
        b=str(raws[1].path),
        same=not notes and all(_close(output) for output in outputs),
        in_both=len(both),
        differing=sorted(apart, key=_distance, reverse=True),
        only_a=[name for name in first if name not in second],
        only_b=[name for name in second if name not in first],
        fields=fields,
        outputs=outputs,
        notes=notes,
        assumed=list(dict.fromkeys(assumed)),
    )


class _Opened(NamedTuple):
    config: ModelConfig
    assumed: list[str]
    give: Callable[[Tensor, Tensor], dict[str, Tensor]]
    """Computes the outputs to compare, by name, from normalised images and a mask."""
    objective: ObjectiveConfig = ObjectiveConfig()


def _open(
    path: str | Path, raw: RawWeights, *, pool: HeadPool | None, **given: Unpack[Given]
) -> _Opened:
    """Load the model that a file holds: a classifier, an autoencoder or an encoder."""
    # Options apply to both files, so those of a decoder are dropped for a file without one.
    own = {n: v for n, v in given.items() if raw.has_decoder or n not in _OF_DECODER}
    if "head.weight" in raw.tensors and not raw.has_decoder:
        loaded, assumed = open_classifier(path, pool=pool, **own)  # type: ignore[arg-type]
        head = loaded.model.eval()
        return _Opened(head.encoder.config, assumed, lambda images, _: {"scores": head(images)})
    _, assumed = config_of(raw, **own)  # type: ignore[arg-type]
    if not raw.has_decoder:
        encoder = open_encoder(path, **own).model.eval()  # type: ignore[arg-type]
        return _Opened(encoder.config, assumed, lambda images, _: {"features": encoder(images)})
    model = open_model(path, **own).model.eval()  # type: ignore[arg-type]

    def give(images: Tensor, mask: Tensor) -> dict[str, Tensor]:
        filled = model.reconstruct(images, mask=mask).images
        # As images, so that differences in target and pixel scaling are included.
        pictures = denormalize_pixels(filled, model.config.pixels)
        return {"features": model.encoder(images), "reconstruction": pictures}

    return _Opened(model.config, assumed, give, model.objective)


@torch.inference_mode()
def _outputs_apart(a: _Opened, b: _Opened) -> tuple[list[Apart], list[str]]:
    """Compare the outputs for the same images and mask, with notes on what cannot be compared."""
    for name in ("channels", "patch_size"):
        of_a, of_b = getattr(a.config, name), getattr(b.config, name)
        if of_a != of_b:
            return [], [f"{name}: {of_a} in a, {of_b} in b; no picture is the same to both"]
    generator = torch.Generator().manual_seed(0)
    C, (H, W), L = a.config.channels, a.config.image_size, a.config.num_patches
    pictures = torch.rand(IMAGES, C, H, W, generator=generator)  # pixel values in [0, 1]
    noise = torch.rand(IMAGES, L, generator=generator)
    mask = random_masking(noise, num_keep=a.objective.num_keep(L)).mask
    one, two = (
        side.give(normalize_pixels(pictures, replace(side.config.pixels, dtype="float32")), mask)
        for side in (a, b)
    )
    outputs = [_apart(name, one[name], two[name]) for name in one if name in two]
    only = [("a", name) for name in one if name not in two]
    only += [("b", name) for name in two if name not in one]
    return outputs, [f"{name}: only {which} can give it" for which, name in only]


def _fields_apart(a: _Opened, b: _Opened) -> dict[str, tuple[Any, Any]]:
    one, two = (to_dict(side.config) | to_dict(side.objective) for side in (a, b))
    return {name: (one[name], two[name]) for name in one if one[name] != two[name]}


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a.float(), b.float())


def _apart(name: str, a: Tensor, b: Tensor) -> Apart:
    if a.shape != b.shape:
        return Apart(name, None, None, (tuple(a.shape), tuple(b.shape)))
    largest = float((a.float() - b.float()).abs().max())
    if not math.isfinite(largest):
        return Apart(name, None, None)
    scale = float(a.float().abs().max())
    return Apart(name, largest, largest / scale if scale else None)


def _close(output: Apart) -> bool:
    return output.largest == 0 or (output.relative is not None and output.relative <= SAME)


def _distance(tensor: Apart) -> float:
    return math.inf if tensor.relative is None else tensor.relative


def _said(apart: Apart) -> str:
    if apart.shapes is not None:
        a, b = apart.shapes
        return f"shape {a} in a, {b} in b"
    if apart.largest is None:
        return "not finite"
    share = "of zeros" if apart.relative is None else f"{apart.relative:.1e} of the largest value"
    return f"at most {apart.largest:.2e} apart, {share}" if apart.largest else "equal"
