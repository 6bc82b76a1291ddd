"""Convert weights between layouts, verifying that the model is unchanged."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple, Unpack

import torch
from torch import Tensor

from mae.errors import WeightsError
from mae.model.autoencoder import MaskedAutoencoder
from mae.model.dense.segmenter import Segmenter
from mae.transfer.detector import Detector
from mae.weights.formats.native import tensors_of
from mae.weights.given import Given, HeadPool, Target
from mae.weights.open_any import Opened, open_any
from mae.weights.read import LAYOUTS
from mae.weights.tools.output import new_output, require_new
from mae.weights.tools.whole_image import whole_image_outputs

_WRITERS = {layout.name: layout.write for layout in LAYOUTS if layout.write}
_REFUSES = {layout.name: layout.refuses for layout in LAYOUTS if layout.refuses}

_ROUNDING = 1e-5  # of the largest value


class Converted(NamedTuple):
    """Result of a conversion."""

    path: str
    tensors: int
    """Number of tensors; all are bit-identical when read back, and the configs are equal."""
    difference: float
    """Largest difference between the outputs of both models for the same images and mask."""
    values: int
    """Number of output values compared."""
    outputs: int
    """Number of output rows compared: tokens, predictions, scores, a loss."""
    notes: list[str]


def convert(
    src: str | os.PathLike[str],
    dst: str | Path,
    *,
    to: Target,
    encoder_only: bool = False,
    allow_missing: Iterable[str] = (),
    pool: HeadPool | None = None,
    **given: Unpack[Given],
) -> Converted:
    """Convert weights to another layout, read them back, and compare.

    Every tensor must be equal, and so must the outputs for the same images and mask, up to
    rounding.

    Args:
        src: any path that `load` or `load_encoder` accepts, or a classifier.
        dst: file or folder to create, in an existing folder.
        to: "mae", a native folder; "facebook", a file in the published layout; "timm", a file for
            timm's vision transformers; "huggingface", a folder for transformers; "dinov2", a
            folder of a `Dinov2Model` of transformers, which heads for dense tasks take.
        encoder_only: skip a decoder or a classifier's head.
        allow_missing: as for `load`.
        pool: pooled feature that a head classifies, if the file does not say.
        given: other settings that the file does not say, see `Given`.

    Raises:
        WeightsError: if `src` cannot be loaded, the layout cannot hold the model, `dst` exists or
            cannot be written, or the two models differ; nothing new is then left at `dst`.
    """
    path = Path(dst)
    require_new(path)
    if to == "timm" and path.suffix != ".safetensors":
        raise WeightsError(f"{path}: expected a name in .safetensors, which timm requires")
    source = open_any(
        src, encoder_only=encoder_only, allow_missing=allow_missing, pool=pool, **given
    )
    tensors = tensors_of(source.model)
    if isinstance(source.model, Segmenter | Detector) and to != "mae":
        kind = type(source.model).__name__.lower()
        raise WeightsError(f"{path}: not written: {to} cannot hold a {kind}, only mae can")
    if to in _REFUSES and (why := _REFUSES[to](source.description, tensors)):
        raise WeightsError(f"{path}: not written: {to} cannot hold this model: {why}")
    with new_output(path) as temporary:
        _WRITERS[to](temporary, tensors, source.description)
        again = open_any(temporary)
        if not _same(source, again):
            raise WeightsError(f"{path}: not written: it reads back as another model")
        both = list(zip(_outputs(source), _outputs(again), strict=True))
        difference = max(float((a - b).abs().max()) for a, b in both)
        # The tensors are equal, so the difference is zero or rounding.
        if not difference <= _ROUNDING * max(float(a.abs().max()) for a, _ in both):
            raise WeightsError(f"{path}: not written: read back, it differs by {difference:g}")
    values = sum(output.numel() for output, _ in both)
    rows = sum(output.numel() // output.shape[-1] for output, _ in both)
    notes, pixels = source.notes, source.description.model.pixels
    if to in ("facebook", "timm"):  # mae reads the scaling from the description that it adds
        notes.append(
            f"{to} does not say how pixels are scaled: divide by {pixels.full_range:g}, subtract "
            f"{list(pixels.mean)}, divide by {list(pixels.std)}"
        )
    return Converted(str(path), len(tensors), difference, values, rows, notes)


@torch.inference_mode()
def _outputs(opened: Opened) -> list[Tensor]:
    """Run a model on two random images: tokens; scores; or tokens, predictions and the loss."""
    model, config = opened.model, opened.description.model
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, config.channels, *config.image_size, generator=generator)
    noise = torch.rand(2, config.num_patches, generator=generator)
    if isinstance(model, MaskedAutoencoder):
        loss = model(images, noise=noise).loss.reshape(1)
        return [model.encoder(images), model.reconstruct(images, noise=noise).pred, loss]
    if isinstance(model, Segmenter):
        return [model.eval()(images).logits]
    if isinstance(model, Detector):
        return [*whole_image_outputs(model.eval(), images).values()]
    return [model(images)]


def _same(a: Opened, b: Opened) -> bool:
    mine, yours = tensors_of(a.model), tensors_of(b.model)
    same_names = _fields(a) == _fields(b) and mine.keys() == yours.keys()
    return same_names and all(torch.equal(mine[name], yours[name]) for name in mine)


def _fields(opened: Opened) -> dict[str, Any]:
    """Return the described fields that a model uses: without those of a decoder it has not."""
    fields = asdict(opened.description)
    del fields["facts"]  # which some layouts cannot hold
    if not isinstance(opened.model, MaskedAutoencoder):
        del fields["objective"]
        fields["model"] = {n: v for n, v in fields["model"].items() if "decoder" not in n}
    return fields
