"""Compare two weight files: tensors, model configs and outputs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, Unpack

import torch
from torch import Tensor

from mae.config.objective import ObjectiveConfig
from mae.config.serialize import to_dict
from mae.errors import WeightsError
from mae.model.autoencoder import MaskedAutoencoder
from mae.model.classifier import Classifier
from mae.model.dense.segmenter import Segmenter
from mae.model.masking import random_masking
from mae.model.normalize import denormalize_pixels, normalize_pixels
from mae.transfer.detector import Detector
from mae.weights.given import Given, HeadPool
from mae.weights.open_any import Opened, open_any
from mae.weights.read import RawWeights, read_weights
from mae.weights.tools.whole_image import whole_image_outputs

SAME = 1e-5  # relative to the largest value; allows for float32 summation order only
IMAGES = 2
_SHOWN = 20
_OF_DECODER = {"decoder_heads", "normalize_target"}


class TensorDiff(NamedTuple):
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
    differing: list[TensorDiff]
    """Tensors in both that are not equal, largest difference first."""
    only_a: list[str]
    only_b: list[str]
    fields: dict[str, tuple[Any, Any]]
    """Model config fields that differ."""
    outputs: list[TensorDiff]
    """Differences of the outputs that both have, for the same images and mask."""
    notes: list[str]
    """What could not be compared, and why."""
    assumed: list[str]
    """What the files do not say and was assumed."""

    def rows(self) -> Iterator[tuple[str, ...]]:
        """Yield the table rows."""
        yield "a", self.a
        yield "b", self.b
        yield from (("note", note) for note in self.assumed)
        yield "tensors", f"{self.in_both:,} in both, {len(self.differing):,} of them differ"
        for which, names in (("a", self.only_a), ("b", self.only_b)):
            if names:
                more = f" and {len(names) - 5:,} more" if len(names) > 5 else ""
                yield f"only in {which}", ", ".join(names[:5]) + more
        yield from ((f"  {tensor.name}", _text(tensor)) for tensor in self.differing[:_SHOWN])
        if len(self.differing) > _SHOWN:
            yield "  ...", f"{len(self.differing) - _SHOWN:,} more; --json lists them all"
        yield from ((name, f"{a} in a, {b} in b") for name, (a, b) in self.fields.items())
        yield from ((output.name, _text(output)) for output in self.outputs)
        yield from (("note", note) for note in self.notes)
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
    raws = [read_weights(path, **given) for path in (a, b)]
    first, second = (raw.tensors for raw in raws)
    both = [name for name in first if name in second]
    found = (_difference(name, first[name], second[name]) for name in both)
    differing = [tensor for tensor in found if tensor.largest != 0]
    outputs, fields, assumed = list[TensorDiff](), dict[str, tuple[Any, Any]](), list[str]()
    try:
        one, two = (_open(raw, pool) for raw in raws)
    except WeightsError as error:
        notes = [f"outputs not compared: {error}"]
    else:
        assumed = [*one.assumed, *two.assumed]
        outputs, notes = _compare_outputs(one, two)
        of_a, of_b = (
            to_dict(side.description.model) | to_dict(_objective(side)) for side in (one, two)
        )
        fields = {n: (of_a[n], of_b[n]) for n in of_a if of_a[n] != of_b[n]}
    return Difference(
        a=str(raws[0].path),
        b=str(raws[1].path),
        same=not notes and all(_distance(output) <= SAME for output in outputs),
        in_both=len(both),
        differing=sorted(differing, key=_distance, reverse=True),
        only_a=[name for name in first if name not in second],
        only_b=[name for name in second if name not in first],
        fields=fields,
        outputs=outputs,
        notes=notes,
        assumed=list(dict.fromkeys(assumed)),
    )


def _open(raw: RawWeights, pool: HeadPool | None) -> Opened:
    # Options apply to both files, so those of a part that one lacks are dropped for it.
    given: Any = {n: v for n, v in raw.given.items() if raw.has_decoder or n not in _OF_DECODER}
    return open_any(raw._replace(given=given), pool=pool if raw.is_classifier else None)


def _objective(opened: Opened) -> ObjectiveConfig:
    return opened.description.objective or ObjectiveConfig()


@torch.inference_mode()
def _compare_outputs(a: Opened, b: Opened) -> tuple[list[TensorDiff], list[str]]:
    """Compare the outputs for the same images and mask, with notes on what cannot be compared."""
    for name in ("channels", "patch_size"):
        of_a, of_b = getattr(a.description.model, name), getattr(b.description.model, name)
        if of_a != of_b:
            return [], [f"{name}: {of_a} in a, {of_b} in b; no image is the same to both"]
    generator = torch.Generator().manual_seed(0)
    config = a.description.model
    C, (H, W), L = config.channels, config.image_size, config.num_patches
    images = torch.rand(IMAGES, C, H, W, generator=generator)  # pixel values in [0, 1]
    noise = torch.rand(IMAGES, L, generator=generator)
    mask = random_masking(noise, num_keep=_objective(a).num_keep(L)).mask
    one, two = (_outputs(side, images, mask) for side in (a, b))
    notes = [f"{name}: only a computes it" for name in one if name not in two]
    notes += [f"{name}: only b computes it" for name in two if name not in one]
    return [_difference(name, one[name], two[name]) for name in one if name in two], notes


def _outputs(opened: Opened, images: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """Return the outputs for images of pixel values in [0, 1], by name."""
    model, pixels = opened.model.eval(), opened.description.model.pixels
    normalised = normalize_pixels(images, replace(pixels, dtype="float32"))
    if isinstance(model, Segmenter):
        return {"logits": model(normalised).logits}
    if isinstance(model, Detector):
        return whole_image_outputs(model, normalised)
    if not isinstance(model, MaskedAutoencoder):
        return {"scores" if isinstance(model, Classifier) else "features": model(normalised)}
    filled = model.reconstruct(normalised, mask=mask).images
    # As images, so that differences in target and pixel scaling are included.
    reconstruction = denormalize_pixels(filled, pixels)
    return {"features": model.encoder(normalised), "reconstruction": reconstruction}


def _difference(name: str, a: Tensor, b: Tensor) -> TensorDiff:
    a, b = a.float(), b.float()
    if a.shape != b.shape:
        return TensorDiff(name, None, None, (tuple(a.shape), tuple(b.shape)))
    if torch.equal(a, b):
        return TensorDiff(name, 0.0, 0.0)
    largest, scale = float((a - b).abs().max()), float(a.abs().max())
    if not math.isfinite(largest):
        return TensorDiff(name, None, None)
    return TensorDiff(name, largest, largest / scale if scale else None)


def _distance(tensor: TensorDiff) -> float:
    return math.inf if tensor.relative is None else tensor.relative


def _text(found: TensorDiff) -> str:
    if found.shapes is not None:
        return f"shape {found.shapes[0]} in a, {found.shapes[1]} in b"
    if found.largest is None:
        return "not finite"
    if not found.largest:
        return "equal"
    of = "of zeros" if found.relative is None else f"{found.relative:.1e} of the largest value"
    return f"at most {found.largest:.2e} apart, {of}"
