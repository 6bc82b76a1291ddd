"""Convert weights between layouts, verifying that the model is unchanged."""

from __future__ import annotations

import json
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, NamedTuple, Unpack

import torch
from torch import Tensor

from mae.config.model import ModelConfig
from mae.config.serialize import to_dict
from mae.errors import WeightsError
from mae.model.autoencoder import MaskedAutoencoder
from mae.model.classifier import Classifier
from mae.model.encoder import Encoder
from mae.weights.classifier import HeadPool, open_classifier
from mae.weights.formats import facebook, huggingface, timm
from mae.weights.formats import native as folder
from mae.weights.formats.native import ClassifierDescription, Description
from mae.weights.given import Given
from mae.weights.io.safe_load import require_new
from mae.weights.load import left_notes, open_encoder, open_model
from mae.weights.read import read_weights

Target = Literal["mae", "facebook", "timm", "huggingface"]
Model = MaskedAutoencoder | Encoder | Classifier

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

    def rows(self) -> list[tuple[str, str]]:
        """Return the table rows: name and value."""
        proof = f"{self.difference:g} over {self.values:,} values in {self.outputs:,} rows"
        return [
            ("written", self.path),
            ("equal tensors", str(self.tensors)),
            ("largest difference", f"{proof}, same pictures and mask"),
            *(("note", note) for note in self.notes),
        ]


class _Content(NamedTuple):
    """A model with its description and notes."""

    model: Model
    description: Description
    notes: list[str]

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Tensors of the model by mae's names."""
        return folder.tensors_of(self.model)


def convert(
    src: str | Path,
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
            timm's vision transformers; "huggingface", a folder for transformers.
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
        raise WeightsError(f"{path}: expected a name in .safetensors, by which timm knows it")
    how = {"encoder_only": encoder_only, "allow_missing": tuple(allow_missing), "pool": pool}
    content = _open(src, **how, **given)  # type: ignore[arg-type]
    refuses = _REFUSES.get(to)
    if refuses and (why := refuses(content.description, content.tensors)):
        raise WeightsError(f"{path}: not written: {to} cannot hold this model: {why}")
    with _appearing(path) as temporary:
        _WRITE[to](temporary, content)
        again = _open(temporary)
        if not _same(content, again):
            raise WeightsError(f"{path}: not written: it reads back as another model")
        both = list(zip(_outputs(content.model), _outputs(again.model), strict=True))
        difference = max(float((a - b).abs().max()) for a, b in both)
        # The tensors are equal, so the difference is zero or rounding.
        if not difference <= _ROUNDING * max(float(a.abs().max()) for a, _ in both):
            raise WeightsError(f"{path}: not written: read back, it differs by {difference:g}")
    values = sum(output.numel() for output, _ in both)
    rows = sum(output.numel() // output.shape[-1] for output, _ in both)
    notes = content.notes + _unsaid(content.description.model, to=to)
    return Converted(str(path), len(content.tensors), difference, values, rows, notes)


@torch.inference_mode()
def _outputs(model: Model) -> list[Tensor]:
    """Run a model on two random images: tokens; scores; or tokens, predictions and the loss."""
    config = model.encoder.config if isinstance(model, Classifier) else model.config
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, config.channels, *config.image_size, generator=generator)
    noise = torch.rand(2, config.num_patches, generator=generator)
    if isinstance(model, MaskedAutoencoder):
        loss = model(images, noise=noise).loss.reshape(1)
        return [model.encoder(images), model.reconstruct(images, noise=noise).pred, loss]
    return [model(images)]


def _open(
    path: str | Path,
    *,
    encoder_only: bool = False,
    allow_missing: tuple[str, ...] = (),
    pool: HeadPool | None = None,
    **given: Unpack[Given],
) -> _Content:
    raw = read_weights(path, take=given.get("take"))
    facts = dict(raw.description.facts) if raw.description else {}
    is_classifier = "head.weight" in raw.tensors and not raw.has_decoder and not encoder_only
    if pool is not None and not is_classifier:
        raise WeightsError(f"pool: no effect, no head is taken from {raw.path}; leave it out")
    if raw.has_decoder and not encoder_only:
        model, notes = open_model(path, allow_missing=allow_missing, **given)
        said = Description(model=model.config, objective=model.objective, facts=facts)
        return _Content(model, said, notes)
    if is_classifier:
        (classifier, names), notes = open_classifier(path, pool=pool, **given)
        said = ClassifierDescription(
            model=classifier.encoder.config, facts=facts, class_names=names, pool=classifier.pool
        )
        notes += left_notes(raw, taken=("encoder", "fc_norm", "head"))
        return _Content(classifier, said, notes)
    encoder, notes = open_encoder(path, allow_missing=allow_missing, **given)
    return _Content(encoder, Description(model=encoder.config, facts=facts), notes)


@contextmanager
def _appearing(path: Path) -> Iterator[Path]:
    """Yield a temporary path; it is renamed to `path` on success and removed on failure."""
    temporary = path.with_name(f".tmp-{secrets.token_hex(4)}-{path.name}")
    try:
        yield temporary
        temporary.rename(path)
    except OSError as error:
        raise WeightsError(f"{path}: cannot be written: {error.strerror or error}") from error
    except RuntimeError as error:  # raised by torch if the disk is full
        raise WeightsError(f"{path}: cannot be written as a whole; is the disk full?") from error
    finally:
        shutil.rmtree(temporary) if temporary.is_dir() else temporary.unlink(missing_ok=True)


def _same(a: _Content, b: _Content) -> bool:
    mine, yours = a.tensors, b.tensors
    # Fields that a model does not use need not be equal: those of a decoder for an encoder.
    fields = _told(a.description, mine), _told(b.description, yours)
    same_names = fields[0] == fields[1] and mine.keys() == yours.keys()
    return same_names and all(torch.equal(mine[name], yours[name]) for name in mine)


def _told(description: Description, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    fields = asdict(description.model) | {"objective": description.objective}
    if not any(name.startswith("decoder.") for name in tensors):
        unused = {n for n in fields if "decoder" in n} | {"objective"}
        fields = {n: v for n, v in fields.items() if n not in unused}
    if isinstance(description, ClassifierDescription):
        fields |= {"class_names": description.class_names, "pool": description.pool}
    return fields


def _unsaid(model: ModelConfig, *, to: Target) -> list[str]:
    """Describe the pixel scaling that a layout does not store for other readers.

    mae reads it from the description that it adds.
    """
    if to in ("mae", "huggingface"):
        return []
    pixels = model.pixels
    return [
        f"{to} does not say how pixels are scaled: divide by {pixels.full_range:g}, subtract "
        f"{list(pixels.mean)}, divide by {list(pixels.std)}"
    ]


def _said(content: _Content) -> str:
    return json.dumps(to_dict(content.description))


_REFUSES: Mapping[str, Callable[[Description, Mapping[str, Tensor]], str | None]] = {
    "facebook": facebook.refuses,
    "timm": timm.refuses,
    "huggingface": huggingface.refuses,
}
_WRITE: Mapping[str, Callable[[Path, _Content], object]] = {
    "mae": lambda path, c: folder.write_folder(path, c.description, c.tensors),
    "facebook": lambda path, c: facebook.write(path, c.tensors, said=_said(c)),
    "timm": lambda path, c: timm.write(path, c.tensors, said=_said(c)),
    "huggingface": lambda path, c: huggingface.write(path, c.tensors, description=c.description),
}
