"""Save and load fine-tuned classifiers, and initialise fine-tuning from weights."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, NamedTuple, Unpack

import torch
from torch import Tensor

from mae.config.run import FinetuneConfig, ModelConfig, settle_crop_pct
from mae.errors import WeightsError
from mae.model.classifier import Classifier
from mae.model.create import create
from mae.model.encoder import Encoder
from mae.runs.directory import differences
from mae.weights.adapt_shape import adapt
from mae.weights.formats.native import ClassifierDescription, write_folder
from mae.weights.given import OPTIONS, Given
from mae.weights.infer_config import config_of, guesses, read_fields
from mae.weights.load import left_notes, taken_note
from mae.weights.load_state import fill
from mae.weights.read import RawWeights, read_weights

_EXPECTED = "a classifier, with fc_norm (mean of the patches) or the encoder's norm (cls token)"

HeadPool = Literal["mean", "cls"]
"""Pooled feature that a head classifies."""

_NETWORK = ("patch_size", "width", "depth", "num_heads", "mlp_ratio")


class LoadedClassifier(NamedTuple):
    """A classifier and the names of its classes."""

    model: Classifier
    class_names: tuple[str, ...]
    """In the order of the scores; numbers if the file has no names."""


def save_classifier(
    classifier: Classifier,
    folder: str | Path,
    *,
    class_names: Sequence[str],
    facts: Mapping[str, object] | None = None,
) -> Path:
    """Save a classifier as a self-describing folder, replacing the files of an earlier one.

    Args:
        classifier: on any device; not changed.
        folder: created if missing.
        class_names: in the order of the scores.
        facts: provenance of the weights, as JSON values.

    Raises:
        ConfigError: if it cannot be written.
    """
    description = ClassifierDescription(
        model=classifier.encoder.config,
        facts=dict(facts or {}),
        class_names=tuple(class_names),
        pool=classifier.pool,
    )
    tensors = {name: t.cpu().contiguous() for name, t in classifier.state_dict().items()}
    return write_folder(Path(folder), description, tensors)


def load_classifier(
    path: str | Path,
    *,
    pool: HeadPool | None = None,
    crop_pct: float | None = None,
    **given: Unpack[Given],
) -> LoadedClassifier:
    """Load a classifier from a mae folder, a run, or a file in another supported layout.

    Assumptions are printed to stderr.

    Args:
        path: folder, run or file of the weights.
        pool: pooled feature that the head classifies, if the file does not say.
        crop_pct: see `ModelConfig`; None uses the value of the file.
        given: other settings that the file does not say, see `Given`; the rest is assumed.

    Raises:
        WeightsError: for weights without a head; for tensors that are missing, unexpected, of
            another shape or not finite; for a head with an unsupported pooling.
    """
    loaded, notes = open_classifier(path, pool=pool, crop_pct=crop_pct, **given)
    for note in notes:
        print(note, file=sys.stderr)
    return loaded


def open_classifier(
    path: str | Path,
    *,
    pool: HeadPool | None = None,
    crop_pct: float | None = None,
    **given: Unpack[Given],
) -> tuple[LoadedClassifier, list[str]]:
    """Load a classifier like `load_classifier`, and return the assumptions as notes."""
    raw = read_weights(path, take=given.get("take"))
    raw = raw._replace(tensors=_folded(raw.tensors))
    head = raw.tensors.get("head.weight")
    if head is None or head.ndim != 2:
        raise WeightsError(
            f"{raw.path}: has no classifier's head (head.weight), expected fine-tuned weights; "
            "fine-tune them first (mae finetune), or use mae probe"
        )
    # The encoder alone, so that unknown decoder settings do not matter; `fill` rejects a decoder.
    encoder = _encoder_of(raw)
    config, notes = config_of(encoder, crop_pct=crop_pct, **given)
    own, assumed = _pool_of(raw, pool)
    if assumed:
        words = {"mean": "the mean of the patches", "cls": "the cls token"}[own]
        more = [f"a head on {words} ({OPTIONS['pool']})"]
        known = guesses(encoder, read_fields(encoder, **given), more=more)
        notes = [*raw.notes, *raw.facts.notes, *known]
    if own == "cls" and "encoder.norm.weight" not in raw.tensors:
        # Equivalent: the norm of one token is the same before and after it is selected.
        renamed = {n.replace("fc_norm.", "encoder.norm."): t for n, t in raw.tensors.items()}
        raw = raw._replace(tensors=renamed)
    names = _names_of(raw, num_classes=len(head))
    with torch.device("meta"):
        model = Classifier(Encoder(config), num_classes=len(head), pool=own)
    fill(model, raw, expected=_EXPECTED)
    return LoadedClassifier(model, names), notes


def _folded(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
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


def _pool_of(raw: RawWeights, pool: HeadPool | None) -> tuple[HeadPool, bool]:
    """Return the pooling of a head, and whether it was guessed from the norm in the file."""
    described = isinstance(raw.description, ClassifierDescription)
    said = raw.description.pool if described else raw.facts.pool  # type: ignore[union-attr]
    if said is not None and said not in ("mean", "cls"):
        uses = "embed, probe, finetune" if "encoder.norm.weight" in raw.tensors else "finetune"
        raise WeightsError(
            f"{raw.path}: its head takes {said}, expected the cls token (token), or the mean with "
            f"fc_norm (avg); its encoder can be used (mae {uses})"
        )
    if pool is not None and said not in (pool, None):
        raise WeightsError(f"pool: got {pool}, but {raw.path} says {said}; leave it out")
    has_fc_norm = "fc_norm.weight" in raw.tensors
    if pool == "mean" and not has_fc_norm:
        raise WeightsError(
            f"{raw.path}: pool: a head on the mean takes fc_norm, which is not there; norms before "
            "the mean cannot be held"
        )
    found = said or pool or ("mean" if has_fc_norm else "cls")
    return found, said is None and pool is None  # type: ignore[return-value]


def _names_of(raw: RawWeights, *, num_classes: int) -> tuple[str, ...]:
    """Return the class names, or numbers if there are none."""
    if isinstance(raw.description, ClassifierDescription):
        names = raw.description.class_names
    else:
        names = raw.facts.class_names or tuple(map(str, range(num_classes)))
    if len(names) != num_classes:
        raise WeightsError(
            f"{raw.path}: its head has {num_classes} classes, its description names "
            f"{len(names)}; restore the folder as it was written"
        )
    return names


def initial_classifier(
    path: str | Path | None, config: FinetuneConfig, **given: Unpack[Given]
) -> tuple[Classifier, list[str]]:
    """Create the initial classifier of fine-tuning: a new head on loaded or new encoder weights.

    Args:
        path: as for `load_encoder`; None initialises the encoder from the seed.
        config: its `model` must come from `model_to_tune` and sets the image size.
        given: as for `load_encoder`.

    Returns:
        The classifier, and notes on what was loaded, skipped, resized or assumed.

    Raises:
        WeightsError: for tensors that are missing, unexpected, of another shape or not finite.
    """
    new = create(config.model, seed=config.seed).encoder
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(config.seed)
        model = Classifier(
            new, num_classes=config.num_classes, pool=config.pool, drop_path=config.drop_path
        )
    if path is None:
        return model, []
    whole = read_weights(path, take=given.get("take"))
    raw = _encoder_of(whole)
    # Mean pooling replaces the encoder's norm by fc_norm, so the file may or may not have it.
    left = {"encoder.norm.weight", "encoder.norm.bias"} if config.pool == "mean" else set[str]()
    raw = raw._replace(tensors={n: t for n, t in raw.tensors.items() if n not in left})
    known = read_fields(raw, **given)
    stored, notes = known.fields, [*whole.notes, *raw.facts.notes, *guesses(raw, known)]
    tensors, adapted = adapt(
        raw.tensors,
        image_size=stored["image_size"],
        channels=stored["channels"],
        to=config.model,
    )
    raw = raw._replace(tensors=tensors)
    fill(model.encoder, raw, prefix="encoder.", expected="an encoder")
    notes += [*adapted, taken_note(raw, config.model, taken=("encoder",))]
    return model, notes + left_notes(whole, taken=("encoder",))


def model_to_tune(
    path: str | Path, config: FinetuneConfig, *, num_classes: int, **given: Unpack[Given]
) -> ModelConfig:
    """Return the model config to fine-tune, combined from the recipe and the weights.

    Channels, pixel scaling and norm eps are those of the weights. With `follow_weights`, all
    other fields are too, except an image size set by `resize`. `crop_pct` is resolved by
    `settle_crop_pct`.

    Raises:
        WeightsError: if the weights have another network than the recipe, or a head with more
            classes than the data.
    """
    whole = read_weights(path, take=given.get("take"))
    if (known := len(whole.tensors.get("head.bias", ()))) > num_classes:
        raise WeightsError(
            f"{whole.path}: its head has {known} classes, the data {num_classes}; give data of the "
            "same classes, or pre-trained weights, which have no head"
        )
    raw = _encoder_of(whole)
    stored, _ = config_of(raw, **given)
    if config.follow_weights:
        asked = {
            "image_size": config.resize or stored.image_size,
            "crop_pct": config.model.crop_pct,
        }
        model = replace(stored, **asked)  # type: ignore[arg-type]
        return settle_crop_pct(model, config.augment, of_weights=stored)
    of_weights, of_run = ({n: getattr(c, n) for n in _NETWORK} for c in (stored, config.model))
    if of_weights != of_run:
        raise WeightsError(
            f"{raw.path}: holds another network than the recipe's: "
            f"{differences(of_weights, of_run).replace('run has', 'weights have')}; choose the "
            "recipe of its size, or finetune-folder, which takes any"
        )
    own = {"channels": stored.channels, "pixels": stored.pixels, "norm_eps": stored.norm_eps}
    return settle_crop_pct(replace(config.model, **own), config.augment)  # type: ignore[arg-type]


def _encoder_of(raw: RawWeights) -> RawWeights:
    """Keep only the tensors of the encoder."""
    own = {name: tensor for name, tensor in raw.tensors.items() if name.startswith("encoder.")}
    return raw._replace(tensors=own)
