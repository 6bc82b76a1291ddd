"""Load whichever model weights hold."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, Unpack

from mae.errors import WeightsError
from mae.weights.formats.name_table import Description
from mae.weights.formats.native import Model, describe
from mae.weights.given import HeadPool, LoadOptions
from mae.weights.infer_config import infer_config
from mae.weights.load import (
    group_notes,
    open_classifier,
    open_detector,
    open_encoder,
    open_model,
    open_segmenter,
)
from mae.weights.read import Source, read_weights


class Opened(NamedTuple):
    """The model of weights: a segmenter, detector, classifier, autoencoder or encoder."""

    model: Model
    description: Description
    notes: list[str]
    """What was loaded, skipped and assumed."""
    assumed: list[str]
    """The notes on what the file does not say."""


def open_any(
    path: Source,
    *,
    encoder_only: bool = False,
    allow_missing: Iterable[str] = (),
    pool: HeadPool | None = None,
    **given: Unpack[LoadOptions],
) -> Opened:
    """Load the model that weights hold, and describe it.

    Args:
        path: as for `load`, or a classifier, segmenter or detector.
        encoder_only: skip a decoder or a head.
        allow_missing: as for `load`; has no effect on a classifier.
        pool: as for `load_classifier`.
        given: as for `load`.
    """
    raw = read_weights(path, **given)
    names, has_head = None, raw.is_classifier and not encoder_only
    if pool is not None and not has_head:
        raise WeightsError(f"pool: no effect, no head is taken from {raw.path}; leave it out")
    model: Model
    if raw.is_segmenter and not encoder_only:
        model, assumed = open_segmenter(raw)
        names, notes = model.class_names, assumed
    elif raw.is_detector and not encoder_only:
        model, assumed = open_detector(raw)
        names, notes = model.class_names, assumed
    elif has_head:
        (model, names), assumed = open_classifier(raw, pool=pool)
        groups = group_notes(raw, model.encoder.config, ("encoder", "fc_norm", "head"))[1:]
        notes = assumed + groups
    elif raw.has_decoder and not encoder_only:
        model, notes = open_model(raw, allow_missing=allow_missing)
        assumed = infer_config(raw).notes
    else:
        model, notes = open_encoder(raw, allow_missing=allow_missing)
        assumed = infer_config(raw.encoder()).notes
    description = describe(model, facts=raw.metadata.facts, class_names=names)
    return Opened(model, description, notes, assumed)
