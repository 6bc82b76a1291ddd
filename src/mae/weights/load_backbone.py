"""Load the backbone of a published ViTDet detector."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import NamedTuple, Unpack

import torch

from mae.config.dense import DenseConfig
from mae.config.model import ModelConfig
from mae.errors import WeightsError
from mae.model.dense.pyramid_backbone import PyramidBackbone
from mae.model.encoder import Encoder
from mae.weights.adapt_shape import resize_weights
from mae.weights.formats import vitdet
from mae.weights.given import LoadOptions
from mae.weights.infer_config import infer_config
from mae.weights.load import Loaded, group_notes, shown
from mae.weights.load_state import load_strict
from mae.weights.read import RawWeights, Source, read_weights

_TAKEN = ("encoder", "pyramid")


class Windows(NamedTuple):
    """Windows of a file, in patches, by the lengths of its relative positions."""

    dense: DenseConfig
    grid: tuple[int, int] | None
    """Patches along height and width that the global blocks were trained on; None: no such."""


def load_backbone(
    path: str | os.PathLike[str], *, quiet: bool = False, **given: Unpack[LoadOptions]
) -> PyramidBackbone:
    """Load the backbone and the simple pyramid of a ViTDet detector of detectron2.

    Windows and global blocks follow from the tables of relative positions, and the image size
    from those of the global blocks: 1,024 pixels as published. The absolute positions, stored for
    the images of the pre-training, are resized to it once (detectron2: in each forward pass).
    Proposal network and heads are left. Notes on what was loaded, skipped and assumed go to
    stderr.

    Args:
        path: a file with the names of detectron2's ViTDet.
        quiet: show no notes.
        given: settings that the file does not say, see `Given`; the rest is assumed.

    Raises:
        WeightsError: for weights of another format; for tensors that are missing, unexpected, of
            another shape or not finite.
    """
    return shown(open_backbone(path, **given), quiet=quiet)


def open_backbone(path: Source, **given: Unpack[LoadOptions]) -> Loaded[PyramidBackbone]:
    """Load the backbone of a ViTDet detector, with notes on what was loaded and skipped."""
    raw = read_weights(path, **given)
    if raw.format != vitdet.NAME:
        raise WeightsError(
            f"{raw.path}: is of the format {raw.format}, expected a ViTDet detector of detectron2; "
            "of other weights mae.load_encoder gives the encoder"
        )
    stored, _, notes = infer_config(raw.encoder())
    dense, grid = _vitdet_windows(raw, stored)
    h, w = grid or stored.grid
    config = replace(stored, image_size=(h * stored.patch_size, w * stored.patch_size))
    channels = len(raw.tensors.get("pyramid.levels.0.1.norm.weight", ())) or 256
    with torch.device("meta"):
        model = PyramidBackbone(Encoder(config), dense, channels=channels)
    fields = {"image_size": stored.image_size, "channels": stored.channels}
    tensors, changes = resize_weights(raw.tensors, fields, to=config)
    own = {n: t for n, t in tensors.items() if n.partition(".")[0] in _TAKEN}
    load_strict(model, raw._replace(tensors=own), expected="a ViTDet detector")
    groups = group_notes(raw, config, _TAKEN)
    return Loaded(model, [*notes, _text(dense), *changes, *groups])


def windows_of(raw: RawWeights, model: ModelConfig) -> Windows | None:
    """Return windows and global blocks of a detector, None for other weights.

    Of one of detectron2 they follow from the lengths of the relative positions.
    """
    if (described := raw.metadata.detector) is not None:
        return Windows(described.dense, None)
    return _vitdet_windows(raw, model) if raw.format == vitdet.NAME else None


def _vitdet_windows(raw: RawWeights, model: ModelConfig) -> Windows:
    """Return windows and global blocks, from the lengths of the relative positions.

    A table of 2s - 1 rows is of s patches. The blocks of the shorter tables attend within
    windows; where all are alike, the whole image is taken to be one.

    Raises:
        WeightsError: for tables of a block that are missing or malformed, for more than two
            lengths, or for windows that are not square.
    """
    sizes = list[tuple[int, int]]()
    for number in range(model.depth):
        tables = [raw.tensors.get(f"encoder.relative.{number}.rel_pos_{axis}") for axis in "hw"]
        lengths = [0 if table is None or table.ndim != 2 else len(table) for table in tables]
        if any(length % 2 == 0 for length in lengths):
            raise WeightsError(
                f"{raw.path}: block {number} has relative positions of {lengths} rows, expected "
                "an odd number of rows and of columns; get the whole file"
            )
        sizes.append(((lengths[0] + 1) // 2, (lengths[1] + 1) // 2))
    found = sorted(set(sizes))
    if len(found) == 1:
        return Windows(DenseConfig(relative_positions="decomposed"), found[0])
    window, grid = found[0], found[-1]
    if len(found) > 2 or window[0] != window[1]:
        raise WeightsError(
            f"{raw.path}: has relative positions of {found} patches, expected those of one square "
            "window and of the whole image"
        )
    whole = tuple(number for number, size in enumerate(sizes) if size == grid)
    dense = DenseConfig(window=window[0], global_blocks=whole, relative_positions="decomposed")
    return Windows(dense, grid)


def inspection_notes(raw: RawWeights, model: ModelConfig) -> list[str]:
    """Describe windows, and which groups of tensors `load_backbone` takes and leaves."""
    return [_text(_vitdet_windows(raw, model).dense), *group_notes(raw, model, _TAKEN)]


def _text(dense: DenseConfig) -> str:
    if dense.window is None:
        return "attention: to the whole image in all blocks, with relative positions"
    whole = " ".join(map(str, dense.global_blocks))
    return (
        f"attention: within windows of {dense.window} x {dense.window} patches; to the whole image "
        f"in blocks {whole}; with relative positions"
    )
