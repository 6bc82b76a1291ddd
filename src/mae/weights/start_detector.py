"""Start a run of detection from weights: a new detector."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Unpack

import torch

from mae.config.dense import DenseConfig
from mae.config.detect import DetectConfig
from mae.model.create import create
from mae.model.dense.pyramid_backbone import PyramidBackbone
from mae.model.dense.relative import resized_offsets
from mae.transfer.detector import Detector
from mae.weights.given import Given
from mae.weights.infer_config import infer_config
from mae.weights.load import Loaded
from mae.weights.load_backbone import windows_of
from mae.weights.load_state import load_strict
from mae.weights.read import RawWeights, Source, read_weights
from mae.weights.start_from import OF_DENSE, fill_encoder

_DETECTOR = "a detector"
_NORM = "pyramid.levels.0.1.norm.weight"  # of the simple pyramid alone; C


def dense_from_weights(
    config: DetectConfig, path: str | Path, **given: Unpack[Given]
) -> DenseConfig:
    """Return how the encoder of a run sees an image.

    With `follow_weights` and nothing else configured, it is as in the detector of the weights.
    """
    if not config.follow_weights or config.dense != DenseConfig():
        return config.dense
    raw = read_weights(path, **given)
    found = windows_of(raw, infer_config(raw.encoder()).model)
    return config.dense if found is None else found.dense


def initial_detector(
    path: Source | None, config: DetectConfig, **given: Unpack[Given]
) -> Loaded[Detector]:
    """Create the initial detector: new heads on loaded or new encoder weights.

    Of a detector, the pyramid and decomposed relative positions are taken as well, and of mae's
    the proposal network and the heads but for their last layers, whose outputs are of classes.

    Args:
        path: as for `load_encoder`, or a detector; None initialises the encoder from the seed.
        config: its `model` must come from `config_from_weights` and sets the image size.
        given: as for `load_encoder`.

    Returns:
        The detector, and notes on what was loaded, skipped, resized or assumed.

    Raises:
        WeightsError: for tensors that are missing, unexpected, of another shape or not finite.
        ConfigError: if torchvision is not installed.
    """
    new = create(config.model, seed=config.seed).encoder
    new.norm = torch.nn.Identity()  # type: ignore[assignment]
    notes, raw = list[str](), None if path is None else read_weights(path, **given)
    parts = () if raw is None else _parts_of(raw, config)
    if raw is not None:
        unused = () if config.dense.has_cls else ("encoder.cls_token",)
        notes = fill_encoder(new, raw, config.model, left=OF_DENSE, unused=unused, parts=parts)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(config.seed)
        backbone = PyramidBackbone(
            new, config.dense, channels=config.pyramid_channels, drop_path=config.drop_path
        )
        model = Detector(
            backbone,
            num_classes=config.num_classes,
            masks=bool(config.masks),
            sampled_boxes=config.sampled_boxes,
        )
    if raw is not None:
        _fill_parts(model, raw, parts)
        norm = raw.tensors.get(_NORM)
        if norm is not None and not parts:
            notes.append(
                f"{raw.path}: its pyramid has {len(norm)} channels, that of the run "
                f"{config.pyramid_channels}, and starts fresh; --pyramid-channels {len(norm)} "
                "takes it"
            )
    return Loaded(model, notes)


def _parts_of(raw: RawWeights, config: DetectConfig) -> tuple[str, ...]:
    """Return the groups of tensors that a new detector takes besides the encoder."""
    norm, parts = raw.tensors.get(_NORM), list[str]()
    if norm is not None and norm.shape == (config.pyramid_channels,):
        parts = ["pyramid", "rpn", "roi_heads"] if raw.is_detector else ["pyramid"]
    return tuple(parts)


def _fill_parts(model: Detector, raw: RawWeights, parts: Sequence[str]) -> None:
    """Load what a new detector takes of another, besides the encoder, in place."""
    tables = {n: t for n, t in raw.tensors.items() if ".rel_pos_" in n}
    if tables and model.encoder.dense.relative_positions == "decomposed":
        sizes = {f"encoder.{name}": len(table) for name, table in model.encoder.named_parameters()}
        fitted = {n: resized_offsets(t.float(), sizes.get(n, len(t))) for n, t in tables.items()}
        filled = raw._replace(tensors=fitted)
        load_strict(model.encoder.relative, filled, prefix="encoder.relative.", expected=_DETECTOR)
    heads = model.roi_heads
    for group, name, part in (
        ("pyramid", "pyramid.", model.backbone.pyramid),
        ("rpn", "rpn.", model.rpn),
        ("roi_heads", "roi_heads.box_head.", heads.box_head),
        ("roi_heads", "roi_heads.mask_head.", heads.mask_head if heads.has_mask() else None),
    ):
        if group in parts and part is not None and any(n.startswith(name) for n in raw.tensors):
            load_strict(part, raw, prefix=name, expected=_DETECTOR)
