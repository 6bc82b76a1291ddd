"""Native weight format: a folder of config.json, model.safetensors and README.md.

The folder is a valid Hugging Face Hub repository; README.md is its model card. The tensors are
the state dict of `MaskedAutoencoder`, of its `encoder.` part only, or of `Classifier`;
config.json describes the network and its pixels.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Literal

from safetensors.torch import save as to_safetensors
from torch import Tensor

from mae.atomic import write_atomic, write_json_atomic
from mae.config.model import ModelConfig
from mae.config.objective import ObjectiveConfig
from mae.config.serialize import from_dict, to_dict
from mae.config.sizes import size_name
from mae.errors import WeightsError
from mae.model.autoencoder import MaskedAutoencoder
from mae.model.classifier import Classifier
from mae.model.encoder import Encoder
from mae.weights.formats.name_table import PARTS, Layout, Table

CONFIG, TENSORS, CARD = "config.json", "model.safetensors", "README.md"

_PLAIN = ("encoder.cls_token", "encoder.pos_embed", "encoder.patch_embed.proj", "encoder.norm",
          "decoder.mask_token", "decoder.pos_embed", "decoder.embed", "decoder.norm",
          "decoder.pred", "fc_norm", "head")  # fmt: skip
_BLOCKS = ("encoder.blocks", "decoder.blocks")

LAYOUT = Layout("mae", (Table(*({name: name for name in n} for n in (_PLAIN, _BLOCKS, PARTS))),))


@dataclass(frozen=True, kw_only=True, slots=True)
class Description:
    """Contents of config.json."""

    format: Literal["mae"] = "mae"
    format_version: Literal[1] = 1
    library: str = field(default_factory=lambda: f"mae-vision {metadata.version('mae-vision')}")
    """Name and version of the library that wrote it."""
    model: ModelConfig
    """The network and its pixel scaling."""
    objective: ObjectiveConfig | None = None
    """Mask and target of the pre-training; none: the weights have no decoder."""
    facts: dict[str, object] = field(default_factory=dict)
    """Provenance of the weights: recipe, data, steps ..."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassifierDescription(Description):
    """Contents of config.json for a classifier."""

    class_names: tuple[str, ...]
    """In the order of the scores."""
    pool: Literal["mean", "cls"]
    """Pooled feature that the head classifies."""


def parse_description(text: str | bytes, *, where: str) -> Description:
    """Parse a description from JSON strictly.

    Raises:
        WeightsError: for the config of another library, a newer version, or unknown or missing
            keys.
    """
    try:
        values = json.loads(text)
        of_classifier = isinstance(values, dict) and "class_names" in values
        kind = ClassifierDescription if of_classifier else Description
        return from_dict(kind, values, where=where)
    except (ValueError, RecursionError) as error:
        raise WeightsError(
            f"{where}: does not describe weights as this version of mae-vision does: {error}"
        ) from error


def tensors_of(model: MaskedAutoencoder | Encoder | Classifier) -> dict[str, Tensor]:
    """Return the tensors of a model by their full names, on the CPU."""
    prefix = "encoder." if isinstance(model, Encoder) else ""
    return {prefix + name: t.cpu().contiguous() for name, t in model.state_dict().items()}


def save(
    model: MaskedAutoencoder | Encoder,
    folder: str | Path,
    *,
    facts: Mapping[str, object] | None = None,
) -> Path:
    """Save a model as a self-describing folder, replacing the files of an earlier one.

    Args:
        model: an autoencoder, or an encoder alone.
        folder: created if missing.
        facts: provenance of the weights, as JSON values (recipe, data, steps, license ...).

    Raises:
        ConfigError: if it cannot be written.
    """
    objective = model.objective if isinstance(model, MaskedAutoencoder) else None
    description = Description(model=model.config, objective=objective, facts=dict(facts or {}))
    return write_folder(Path(folder), description, tensors_of(model))


def write_folder(path: Path, description: Description, tensors: dict[str, Tensor]) -> Path:
    """Write the three files of a native folder; the tensors must be on the CPU."""
    write_json_atomic(path / CONFIG, to_dict(description))
    write_atomic(path / CARD, _card(description).encode())
    # Last, since a folder is recognised as weights by its tensors.
    write_atomic(path / TENSORS, to_safetensors(tensors, {"format": "pt"}))
    return path


def _card(description: Description) -> str:
    model = description.model
    name = size_name(width=model.width, depth=model.depth, patch_size=model.patch_size)
    if isinstance(description, ClassifierDescription):
        title, task = f"Classifier {name}", "image-classification"
        how, code = "console", "mae evaluate FOLDER --data pictures/val"
        title += f" of {len(description.class_names):,} classes"
    else:
        title, task = f"Masked autoencoder {name}", "image-feature-extraction"
        how = "python"
        code = f"""import mae

features = mae.embed("FOLDER", "pictures", pool="mean")  # n x {model.width}"""
    facts = "\n".join(f"- {key}: {value}" for key, value in description.facts.items())
    return f"""---
license: {json.dumps(description.facts.get("license", "unknown"))}
library_name: mae-vision
pipeline_tag: {task}
tags:
- masked-autoencoder
- vision-transformer
- self-supervised-learning
---

# {title}

The network and the scaling of its pixels are described in {CONFIG}. Where it comes from:

{facts or "Not stated."}

```{how}
{code}
```
"""
