"""Load models from weights strictly, reporting missing and unexpected tensors."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from typing import Generic, NamedTuple, TypeVar, Unpack

import torch
from torch import Tensor

from mae.config.model import ModelConfig
from mae.config.sizes import size_name
from mae.errors import WeightsError
from mae.model.autoencoder import MaskedAutoencoder
from mae.model.classifier import Classifier
from mae.model.create import create
from mae.model.dense.pyramid_backbone import PyramidBackbone
from mae.model.dense.segmenter import Segmenter
from mae.model.encoder import Encoder
from mae.transfer.detector import Detector
from mae.weights.formats import vitdet
from mae.weights.given import HeadPool, LoadOptions
from mae.weights.infer_config import infer_config, infer_fields, notes_on
from mae.weights.load_state import NO_DECODER, load_strict
from mae.weights.read import RawWeights, Source, read_weights

# Groups of tensors that may be skipped, and why.
_SKIPPED = {
    "decoder": "only reconstruction needs it",
    "head": "it is of a classifier or a segmenter",
    "fc_norm": "it is a classifier's",
    "pyramid": "it is of a segmenter or a detector",
    "auxiliary": "it is a segmenter's",
    "rpn": "the proposal network of a detector",
    "roi_heads": "the heads of boxes and masks of a detector",
    "unused": "no part of a masked autoencoder",
}
_POOLED = {"mean": "the mean of the patches", "cls": "the cls token"}
_CLASSIFIER = "a classifier, with fc_norm (mean of the patches) or the encoder's norm (cls token)"

ModelT = TypeVar("ModelT", covariant=True)


class LoadedClassifier(NamedTuple):
    """A classifier and the names of its classes."""

    model: Classifier
    class_names: tuple[str, ...]
    """In the order of the scores; numbers if the file has no names."""


class Loaded(NamedTuple, Generic[ModelT]):
    """A model, and notes on what was skipped and assumed."""

    model: ModelT
    notes: list[str]


def load(
    path: str | os.PathLike[str],
    *,
    allow_missing: Iterable[str] = (),
    quiet: bool = False,
    **given: Unpack[LoadOptions],
) -> MaskedAutoencoder:
    """Load encoder and decoder; notes on what was loaded, skipped and assumed go to stderr.

    Args:
        path: folder of mae or transformers, run, checkpoint, file in a supported layout, or
            `hf:owner/name`.
        allow_missing: patterns of tensor names, in the file's or mae's naming
            (`decoder.norm.*`). Missing tensors that match are initialised and reported.
        quiet: show no notes.
        given: settings that the file does not say, see `Given`; the rest is assumed.

    Raises:
        WeightsError: for other tensors that are missing, unexpected, of another shape or not
            finite.
    """
    return shown(open_model(path, allow_missing=allow_missing, **given), quiet=quiet)


def load_encoder(
    path: str | os.PathLike[str],
    *,
    allow_missing: Iterable[str] = (),
    quiet: bool = False,
    **given: Unpack[LoadOptions],
) -> Encoder:
    """Load the encoder alone; notes on what was loaded, skipped and assumed go to stderr.

    Arguments and errors are those of `load`; a decoder or a classifier's head is skipped. Of a
    classifier with `fc_norm`, which replaces the encoder's norm, the encoder has no norm.
    """
    return shown(open_encoder(path, allow_missing=allow_missing, **given), quiet=quiet)


def load_classifier(
    path: str | os.PathLike[str],
    *,
    pool: HeadPool | None = None,
    quiet: bool = False,
    **given: Unpack[LoadOptions],
) -> LoadedClassifier:
    """Load a classifier; assumptions are printed to stderr.

    Args:
        path: as for `load`.
        pool: pooled feature that the head classifies, if the file does not say.
        quiet: show no notes.
        given: other settings that the file does not say, see `Given`; the rest is assumed.

    Raises:
        WeightsError: for weights without a head; for tensors that are missing, unexpected, of
            another shape or not finite; for a head with an unsupported pooling.
    """
    return shown(open_classifier(path, pool=pool, **given), quiet=quiet)


def load_segmenter(
    path: str | os.PathLike[str], *, quiet: bool = False, **given: Unpack[LoadOptions]
) -> Segmenter:
    """Load a segmenter, with its `class_names`; notes on what was loaded go to stderr.

    Args:
        path: run of `mae segment train`, its checkpoint or its weights.
        quiet: show no notes.
        given: as for `load`.

    Raises:
        WeightsError: for other weights; for tensors that are missing, unexpected, of another
            shape or not finite.
    """
    return shown(open_segmenter(path, **given), quiet=quiet)


def load_detector(
    path: str | os.PathLike[str], *, quiet: bool = False, **given: Unpack[LoadOptions]
) -> Detector:
    """Load a detector, with its `class_names`; notes on what was loaded go to stderr.

    Args:
        path: run of `mae detect train`, its checkpoint or its weights.
        quiet: show no notes.
        given: as for `load`.

    Raises:
        ConfigError: if torchvision is not installed.
        WeightsError: for other weights; for tensors that are missing, unexpected, of another
            shape or not finite.
    """
    return shown(open_detector(path, **given), quiet=quiet)


def shown(loaded: Loaded[ModelT], *, quiet: bool) -> ModelT:
    """Print the notes of a model to stderr unless quiet; return the model."""
    for note in () if quiet else loaded.notes:
        print(note, file=sys.stderr)
    return loaded.model


def open_model(
    path: Source, *, allow_missing: Iterable[str] = (), **given: Unpack[LoadOptions]
) -> Loaded[MaskedAutoencoder]:
    """Load encoder and decoder, with notes on what was loaded, skipped and assumed."""
    raw, allowed = read_weights(path, **given), tuple(allow_missing)
    if not raw.has_decoder and not allowed:
        raise WeightsError(
            f"decoder: not in this file, {raw.path}; features are possible (load_encoder), "
            "reconstruction is not; give a pre-training run for it, or weights with a decoder"
        )
    config, objective, notes = infer_config(raw)
    if allowed:
        model = create(config, objective=objective)
    else:
        with torch.device("meta"):
            model = MaskedAutoencoder(config, objective)
    fresh = load_strict(model, raw, allow_missing=allowed)
    return Loaded(model, notes + group_notes(raw, config, ("encoder", "decoder")) + fresh)


def open_encoder(
    path: Source, *, allow_missing: Iterable[str] = (), **given: Unpack[LoadOptions]
) -> Loaded[Encoder]:
    """Load the encoder alone, with notes on what was loaded, skipped and assumed."""
    raw, allowed = read_weights(path, **given), tuple(allow_missing)
    require_plain_encoder(raw)
    # The encoder's tensors only, so that unknown decoder settings are not required.
    config, _, notes = infer_config(raw.encoder())
    if allowed:
        encoder = create(config).encoder
    else:
        with torch.device("meta"):
            encoder = Encoder(config)
        if "fc_norm.weight" in raw.tensors and "encoder.norm.weight" not in raw.tensors:
            # As in its classifier, and in timm's forward_features.
            encoder.norm = torch.nn.Identity()  # type: ignore[assignment]
    fresh = load_strict(encoder, raw, prefix="encoder.", allow_missing=allowed)
    notes += group_notes(raw, config, ("encoder",)) + fresh
    if isinstance(encoder.norm, torch.nn.Identity):
        notes.append(
            f"{raw.path}: fine-tuned with fc_norm, after the mean of the patches, in place of the "
            "encoder's norm: its features are those before a norm"
        )
    return Loaded(encoder, notes if raw.has_decoder else [*notes, NO_DECODER])


def require_plain_encoder(raw: RawWeights) -> None:
    """Reject a detector: without windows and relative positions its blocks give other features.

    Raises:
        WeightsError: for such weights.
    """
    if raw.format == vitdet.NAME:
        raise WeightsError(
            f"{raw.path}: is a ViTDet detector, whose encoder has windows, relative positions and "
            "no cls token: no plain encoder gives its features; mae.load_backbone reads it"
        )


def open_classifier(
    path: Source, *, pool: HeadPool | None = None, **given: Unpack[LoadOptions]
) -> Loaded[LoadedClassifier]:
    """Load a classifier, with notes on what was assumed."""
    raw = read_weights(path, **given)
    tensors = _with_folded_norm(raw.tensors)
    head = tensors.get("head.weight")
    if raw.is_segmenter or raw.is_detector:
        kind, verb = ("segmenter", "segment") if raw.is_segmenter else ("detector", "detect")
        raise WeightsError(
            f"{raw.path}: is a {kind}, expected a classifier; use mae {verb} predict"
        )
    if head is None or head.ndim != 2:
        raise WeightsError(
            f"{raw.path}: has no classifier's head (head.weight), expected fine-tuned weights; "
            "fine-tune them first (mae finetune), or use mae probe"
        )
    # The encoder alone, so that unknown decoder settings do not matter; `load_strict` rejects a
    # decoder.
    pooled, encoder = _checked_pool(raw, pool), raw.encoder()
    config, _, notes = infer_config(encoder)
    if pool is None and raw.metadata.pool is None:
        known = infer_fields(encoder)
        fields = known.fields | {"pool": _POOLED[pooled]}
        notes = notes_on(raw, known._replace(fields=fields, assumed=(*known.assumed, "pool")))
    if pooled == "cls" and "encoder.norm.weight" not in tensors:
        # Equivalent: the norm of one token is the same before and after it is selected.
        tensors = {n.replace("fc_norm.", "encoder.norm."): t for n, t in tensors.items()}
    names = raw.metadata.class_names or tuple(map(str, range(len(head))))
    if len(names) != len(head):
        raise WeightsError(
            f"{raw.path}: its head has {len(head)} classes, its description names "
            f"{len(names)}; restore the folder as it was written"
        )
    with torch.device("meta"):
        model = Classifier(Encoder(config), num_classes=len(head), pool=pooled)
    load_strict(model, raw._replace(tensors=tensors), expected=_CLASSIFIER)
    model.class_names = names
    return Loaded(LoadedClassifier(model, names), notes)


def open_segmenter(path: Source, **given: Unpack[LoadOptions]) -> Loaded[Segmenter]:
    """Load a segmenter, with notes on what was assumed."""
    raw = read_weights(path, **given)
    described = raw.metadata.segmenter
    if described is None:
        raise WeightsError(
            f"{raw.path}: has no segmenter's head, expected weights of mae segment train; train "
            "one from these weights first"
        )
    config, _, notes = infer_config(raw.encoder())
    names, how = described.class_names, {"dense": described.dense, "head": described.head}
    with torch.device("meta"):
        model = Segmenter(Encoder(config), num_classes=len(names), **how)  # type: ignore[arg-type]
    load_strict(model, raw, expected="a segmenter")
    model.class_names = names
    return Loaded(model, notes)


def open_detector(path: Source, **given: Unpack[LoadOptions]) -> Loaded[Detector]:
    """Load a detector, with notes on what was assumed."""
    raw = read_weights(path, **given)
    described = raw.metadata.detector
    if described is None:
        raise WeightsError(
            f"{raw.path}: has no heads of a detector, expected weights of mae detect train; train "
            "one from these weights first"
        )
    config, _, notes = infer_config(raw.encoder())
    names, masks = described.class_names, described.masks
    with torch.device("meta"):
        backbone = PyramidBackbone(
            Encoder(config), described.dense, channels=described.pyramid_channels
        )
        model = Detector(backbone, num_classes=len(names), masks=masks)
    heads = ("rpn.", "roi_heads.")
    rest = {name: t for name, t in raw.tensors.items() if not name.startswith(heads)}
    load_strict(backbone, raw._replace(tensors=rest), expected="a detector")
    for part, prefix in zip((model.rpn, model.roi_heads), heads, strict=True):
        load_strict(part, raw, prefix=prefix, expected="a detector")
    model.class_names = names
    return Loaded(model, notes)


def group_notes(raw: RawWeights, config: ModelConfig, loaded: Sequence[str]) -> list[str]:
    """Describe which groups of tensors were loaded, the network, and each skipped group."""
    groups = [name.partition(".")[0] for name in raw.tensors]
    held = [group for group in loaded if group in groups]
    number = sum(group in held for group in groups)
    name = size_name(width=config.width, depth=config.depth, patch_size=config.patch_size)
    return [f"{raw.path}: took the {' and '.join(held)}, {name}, {number} tensors"] + [
        f"{raw.path}: left {group}, {groups.count(group)} tensors: {_SKIPPED[group]}"
        for group in sorted(set(groups) - set(loaded))
    ]


def _with_folded_norm(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Fold the batch norm of a linear probe into the linear layer after it.

    The batch norm has no affine parameters and an eps of 1e-6, in facebookresearch/mae and in
    OpenMMLab.
    """
    mean, var = (tensors.get(f"head.bn.running_{name}") for name in ("mean", "var"))
    weight, bias = (tensors.get(f"head.{name}") for name in ("weight", "bias"))
    if mean is None or var is None or weight is None or bias is None:
        return tensors
    if not weight.shape[1:] == mean.shape == var.shape or bias.shape != weight.shape[:1]:
        return tensors
    scaled = weight.double() / (var.double() + 1e-6).sqrt()
    head = {"head.weight": scaled.float(), "head.bias": (bias - scaled @ mean.double()).float()}
    rest = {name: tensor for name, tensor in tensors.items() if not name.startswith("head.bn.")}
    return rest | head


def head_pool(raw: RawWeights) -> str:
    """Return the pooling of a head; if the file does not say, it follows from its norm."""
    return raw.metadata.pool or ("mean" if "fc_norm.weight" in raw.tensors else "cls")


def _checked_pool(raw: RawWeights, pool: HeadPool | None) -> HeadPool:
    """Return the pooling of a head, and reject one that is unsupported or contradicts the file."""
    stored, found = raw.metadata.pool, pool or head_pool(raw)
    if stored not in ("mean", "cls", None):
        uses = "embed, probe, finetune" if "encoder.norm.weight" in raw.tensors else "finetune"
        raise WeightsError(
            f"{raw.path}: its head takes {stored}, expected the cls token (token), or the mean "
            f"with fc_norm (avg); its encoder can be used (mae {uses})"
        )
    if pool is not None and stored not in (pool, None):
        raise WeightsError(f"pool: got {pool}, but {raw.path} says {stored}; leave it out")
    if pool == "mean" and "fc_norm.weight" not in raw.tensors:
        raise WeightsError(
            f"{raw.path}: pool: a head on the mean requires fc_norm, which is missing; norms "
            "before the mean are not supported"
        )
    return found  # type: ignore[return-value]
