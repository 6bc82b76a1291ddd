"""Native weight format: a folder of config.json, model.safetensors and README.md.

The folder is a valid Hugging Face Hub repository; README.md is its model card. The tensors are
the state dict of `MaskedAutoencoder`, of its `encoder.` part only, of `Classifier`, `Segmenter` or
`Detector`; config.json describes the network and its pixels.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from safetensors.torch import save as to_safetensors
from torch import Tensor
from torch.nn import Identity

from mae.atomic import write_atomic, write_json_atomic
from mae.config.serialize import from_dict, to_dict
from mae.config.sizes import size_name
from mae.errors import ConfigError, WeightsError
from mae.model.autoencoder import MaskedAutoencoder
from mae.model.classifier import Classifier
from mae.model.dense.segmenter import Segmenter
from mae.model.encoder import Encoder
from mae.runs.directory import RunDir, read_record
from mae.transfer.detector import Detector
from mae.weights.formats.name_table import (
    LAYERS,
    ClassifierDescription,
    Description,
    DetectorDescription,
    Layout,
    Metadata,
    SegmenterDescription,
    block_names,
    norm_buffers,
)

CONFIG, TENSORS, CARD = "config.json", "model.safetensors", "README.md"

Model = MaskedAutoencoder | Encoder | Classifier | Segmenter | Detector

_NAMES = ("encoder.cls_token", "encoder.pos_embed", "encoder.patch_embed.proj", "encoder.norm",
          "decoder.mask_token", "decoder.pos_embed", "decoder.embed", "decoder.norm",
          "decoder.pred", "fc_norm", "head")  # fmt: skip
_TABLE = {name: name for name in _NAMES}
for _blocks in ("encoder.blocks", "decoder.blocks"):
    _TABLE |= block_names(_blocks, _blocks, LAYERS)

# A segmenter: what it adds to each block, the pyramid, and convolutions with their norms.
_CONVS = ("head.bottleneck", "head.fusion", "head.pooled.*", "head.lateral.*", "head.fpn.*",
          "auxiliary.conv")  # fmt: skip
_NORMS = ("head.norm", "pyramid.levels.*.1", *(f"{conv}.norm" for conv in _CONVS))
_OF_SEGMENTER = (
    "encoder.relative.*.rel_pos_h", "encoder.relative.*.rel_pos_w", "encoder.relative.*.table",
    "encoder.layer_scale.*.attn", "encoder.layer_scale.*.mlp", "pyramid.levels.*",
    "pyramid.levels.*.0", "pyramid.levels.*.3", "head.classify.conv", "auxiliary.classify.conv",
    *(f"{conv}.conv" for conv in _CONVS), *_NORMS,
)  # fmt: skip
_TABLE |= {name: name for name in _OF_SEGMENTER}
for _norm in _NORMS:
    _TABLE |= norm_buffers(_norm, _norm)

# A detector: its encoder and pyramid are parts of its backbone.
_PYRAMID = tuple(
    f"pyramid.levels.*.{part}"
    for part in ("0", "0.0", "0.1", "0.3", "1.conv", "1.norm", "2.conv", "2.norm")
)
_HEADS = (
    "rpn.head.conv.*.0", "rpn.head.cls_logits", "rpn.head.bbox_pred", "roi_heads.box_head.*",
    "roi_heads.box_head.*.0", "roi_heads.box_head.*.1", "roi_heads.box_predictor.cls_score",
    "roi_heads.box_predictor.bbox_pred", "roi_heads.mask_head.*.0", "roi_heads.mask_head.*.1",
    "roi_heads.mask_predictor.conv5_mask", "roi_heads.mask_predictor.mask_fcn_logits",
)  # fmt: skip
_OF_DETECTOR = {name: name for name in _HEADS} | {
    name: f"backbone.{name}"
    for name in (*_PYRAMID, *(name for name in _TABLE if name.startswith("encoder.")))
}


def parse_description(text: str | bytes, *, where: str) -> Metadata:
    """Parse a description from JSON strictly.

    Raises:
        WeightsError: for the config of another library, a newer version, or unknown or missing
            keys.
    """
    try:
        return _described(json.loads(text), where=where)
    except (ValueError, RecursionError) as error:
        raise WeightsError(
            f"{where}: does not describe weights as this version of mae-vision does: {error}"
        ) from error


def _described(values: Any, *, where: str) -> Metadata:
    keys = values if isinstance(values, dict) else ()
    kind: type[Description] = Description
    if "class_names" in keys:
        kind = ClassifierDescription
        if "head" in keys:
            kind = SegmenterDescription
        elif "pyramid_channels" in keys:
            kind = DetectorDescription
    found = from_dict(kind, values, where=where)
    model, objective = found.model, found.objective
    known = {f.name: getattr(model, f.name) for f in fields(model)}
    if objective is not None:
        known |= asdict(objective)
    metadata = Metadata(known, "described", gelu=True, model=model, facts=found.facts)
    if isinstance(found, ClassifierDescription):
        return metadata._replace(pool=found.pool, class_names=found.class_names)
    if isinstance(found, SegmenterDescription):
        return metadata._replace(segmenter=found, class_names=found.class_names)
    if isinstance(found, DetectorDescription):
        return metadata._replace(detector=found, class_names=found.class_names)
    return metadata


def _read_metadata(_beside: Mapping[str, Any], file: Path, _: Mapping[str, Tensor]) -> Metadata:
    """Read the description next to a file, or that of its run."""
    config = file.with_name(CONFIG)
    if config.is_file():
        try:
            text = config.read_bytes()
        except OSError as error:
            raise WeightsError(f"{config}: cannot be read: {error.strerror}") from error
        found = parse_description(text, where=str(config))
    elif file.with_name("manifest.json").is_file():
        found = _of_checkpoint(file)
    else:
        return Metadata()
    if found.fields["crop_pct"] is None and _on_whole_images(file):
        rest = {name: value for name, value in found.fields.items() if name != "crop_pct"}
        return found._replace(fields=rest, assumed={"crop_pct": 1.0})
    return found


def _of_checkpoint(file: Path) -> Metadata:
    """Read the description of a checkpoint from the record of its run."""
    manifest = file.absolute().with_name("manifest.json")
    run = manifest.parent.parent.parent
    if hashlib.sha256(file.read_bytes()).hexdigest().encode() not in manifest.read_bytes():
        raise WeightsError(f"{file}: is not what {manifest.name} says; name an older checkpoint")
    record = read_record(run)
    if record is None:
        raise WeightsError(f"{file}: is of a run without run.json; put it back")
    config = record["config"]
    names = ("model", "objective", "pool", "dense", "head", "masks", "pyramid_channels")
    values = {name: config[name] for name in names if name in config}
    if "class_names" in record:
        values["class_names"] = record["class_names"]
    return _described(values, where=str(RunDir(run).record))


def _on_whole_images(file: Path) -> bool:
    """Return whether a file belongs to a run that was trained on whole images."""
    folder = file.absolute().parent
    run = folder.parent if folder.name == "weights" else folder.parent.parent
    if folder not in (RunDir(run).weights, RunDir(run).checkpoints / folder.name):
        return False
    with suppress(ConfigError):  # the weights are usable with a damaged record
        record = read_record(run) or {"config": {}}
        augment = record["config"].get("augment")
        return isinstance(augment, Mapping) and augment.get("crop_scale") == [1, 1]
    return False


def tensors_of(model: Model) -> dict[str, Tensor]:
    """Return the tensors of a model by their full names, on the CPU."""
    prefix = "encoder." if isinstance(model, Encoder) else ""
    return {prefix + name: t.cpu().contiguous() for name, t in model.state_dict().items()}


def describe(
    model: Model, *, facts: Mapping[str, object] | None, class_names: Sequence[str] | None
) -> Description:
    """Return the contents of config.json for a model; arguments as for `save`.

    Raises:
        ConfigError: if a classifier, segmenter or detector is given without class names, or
            another model with them.
        WeightsError: for the encoder of a classifier with `fc_norm`.
    """
    if isinstance(model, Classifier | Segmenter | Detector) != (class_names is not None):
        raise ConfigError(
            "class_names: expected for a classifier, segmenter or detector, and for no other model"
        )
    if isinstance(model, Encoder) and isinstance(model.norm, Identity):
        raise WeightsError(
            "encoder: it was fine-tuned with fc_norm in place of its norm and cannot be stored "
            "alone; store the classifier with its head"
        )
    own: dict[str, Any] = {"facts": dict(facts or {})}
    if isinstance(model, Classifier):
        own |= {"class_names": tuple(class_names or ()), "pool": model.pool}
        return ClassifierDescription(model=model.encoder.config, **own)
    if isinstance(model, Segmenter):
        own |= {"class_names": tuple(class_names or ()), "head": model.config}
        return SegmenterDescription(model=model.encoder.config, dense=model.encoder.dense, **own)
    if isinstance(model, Detector):
        own |= {"class_names": tuple(class_names or ()), "masks": model.has_masks}
        own |= {"dense": model.encoder.dense, "pyramid_channels": model.backbone.out_channels}
        return DetectorDescription(model=model.encoder.config, **own)
    if isinstance(model, MaskedAutoencoder):
        own["objective"] = model.objective
    return Description(model=model.config, **own)


def save(
    model: Model,
    folder: str | Path,
    *,
    facts: Mapping[str, object] | None = None,
    class_names: Sequence[str] | None = None,
) -> Path:
    """Save a model as a self-describing folder, replacing the files of an earlier one.

    Args:
        model: an autoencoder, an encoder alone, a classifier, a segmenter or a detector; on any
            device, not changed.
        folder: created if missing.
        facts: provenance of the weights, as JSON values (recipe, data, steps, license ...).
        class_names: those of a classifier, segmenter or detector, in the order of its scores;
            none: its `class_names`.

    Raises:
        ConfigError: if it cannot be written, or for class names of the wrong type of model.
    """
    if class_names is None and isinstance(model, Classifier | Segmenter | Detector):
        class_names = model.class_names or None
    description = describe(model, facts=facts, class_names=class_names)
    return write(Path(folder), tensors_of(model), description)


def write(path: Path, tensors: Mapping[str, Tensor], description: Description) -> Path:
    """Write the three files of a native folder; the tensors must be on the CPU."""
    write_json_atomic(path / CONFIG, to_dict(description))
    write_atomic(path / CARD, _card(description).encode())
    # Last, since a folder is recognised as weights by its tensors.
    write_atomic(path / TENSORS, to_safetensors(dict(tensors), {"format": "pt"}))
    return path


def _card(description: Description) -> str:
    model = description.model
    title = size_name(width=model.width, depth=model.depth, patch_size=model.patch_size)
    if isinstance(description, ClassifierDescription):
        title = f"Classifier {title} of {len(description.class_names):,} classes"
        task, language, code = (
            "image-classification",
            "console",
            "mae predict FOLDER IMAGES\nmae evaluate FOLDER --data images/val",
        )
    elif isinstance(description, SegmenterDescription):
        title = f"Segmenter {title} of {len(description.class_names):,} classes"
        task, language, code = "image-segmentation", "console", "mae segment predict FOLDER IMAGES"
    elif isinstance(description, DetectorDescription):
        title = f"Detector {title} of {len(description.class_names):,} classes"
        task, language, code = "object-detection", "console", "mae detect predict FOLDER IMAGES"
    else:
        title, task, language = f"Masked autoencoder {title}", "image-feature-extraction", "python"
        code = "import mae\n\n"
        code += f'features = mae.embed("FOLDER", "images", pool="mean")  # n x {model.width}'
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

```{language}
{code}
```
"""


LAYOUT = Layout("mae", (_TABLE, _OF_DETECTOR), _read_metadata, write)
