"""Parameter groups against the published ones and timm's, and what is frozen."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path

import pytest
import timm
import torch
from timm.optim import param_groups_layer_decay
from torch import nn

from mae.config.detect import DetectConfig
from mae.config.run import FitConfig, OptimConfig
from mae.config.sizes import model_config
from mae.data.batching.batch import Batch
from mae.model.classifier import Classifier
from mae.model.create import create
from mae.model.dense.pyramid_backbone import PyramidBackbone
from mae.model.dense.segmenter import Segmenter
from mae.model.encoder import Encoder
from mae.recipes.detecting import COCO_B, COCO_H, COCO_L
from mae.recipes.segmenting import ADE20K
from mae.runs.state import TrainState
from mae.train.optim.parameter_groups import choose_trained, create_optimizer, parameter_groups
from mae.train.step import OptimiserStep
from mae.transfer.detector import Detector
from mae.weights.formats.facebook import to_theirs
from tests.model.tiny import tiny_config

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "layer_decay.json").read_text())


def classifier(size: str, *, train_blocks: float | None = None, **options: object) -> Classifier:
    with torch.device("meta"):
        model = Classifier(Encoder(model_config(size)), num_classes=1000, **options)  # type: ignore[arg-type]
    choose_trained(model, train_blocks)
    return model


def by_name(model: nn.Module, groups: Iterable[dict[str, object]], *, key: str) -> dict:
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {
        to_theirs(names[parameter]): (group[key], group["weight_decay"])
        for group in groups
        for parameter in group["params"]  # type: ignore[attr-defined]
    }


def ours(model: Classifier, *, layer_decay: float) -> dict:
    depth = model.encoder.config.depth
    groups = parameter_groups(
        model, weight_decay=0.05, decay_tokens=False, layer_decay=layer_decay, depth=depth
    )
    assert len({(group["scale"], group["weight_decay"]) for group in groups}) == len(groups)
    return by_name(model, groups, key="scale")


def test_groups_of_vit_b_are_the_published_ones_parameter_by_parameter() -> None:
    found = ours(classifier("vit-b/16"), layer_decay=GOLDEN["layer_decay"])

    expected = {
        name: (group["lr_scale"], group["weight_decay"])
        for group in GOLDEN["groups"]
        for name in group["params"]
    }
    assert found == expected


@pytest.mark.parametrize(
    ("size", "name", "layer_decay"),
    [
        ("vit-b/16", "vit_base_patch16_224", 0.65),
        ("vit-l/16", "vit_large_patch16_224", 0.75),
        ("vit-h/14", "vit_huge_patch14_224", 0.75),
    ],
)
@pytest.mark.parametrize(("pool", "global_pool"), [("mean", "avg"), ("cls", "token")])
def test_groups_are_timms_parameter_by_parameter(
    size, name, layer_decay, pool, global_pool
) -> None:
    with torch.device("meta"):
        # Created as it is registered, without the settings of its published weights.
        other = timm.create_model(name, global_pool=global_pool, num_classes=1000)
    theirs = param_groups_layer_decay(
        other,
        weight_decay=0.05,
        no_weight_decay_list=other.no_weight_decay(),
        layer_decay=layer_decay,
    )

    found = ours(classifier(size, pool=pool), layer_decay=layer_decay)

    expected = by_name(other, theirs, key="lr_scale")
    assert found.keys() == expected.keys()
    if pool == "cls":
        # timm counts the last norm to the last block; the published rule counts it to the head.
        expected |= {name: (1.0, 0.0) for name in ("norm.weight", "norm.bias")}
    for parameter, (scale, decay) in expected.items():
        assert found[parameter] == (pytest.approx(scale, rel=1e-12), decay), parameter


def test_pre_training_keeps_its_two_groups_at_the_whole_rate() -> None:
    model = create(tiny_config())

    decayed, kept = parameter_groups(model, weight_decay=0.05, decay_tokens=True)

    assert (decayed["scale"], kept["scale"]) == (1.0, 1.0)
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.05, 0.0)


def test_a_step_multiplies_the_rate_of_each_group_by_its_scale() -> None:
    model = Classifier(create(tiny_config()).encoder, num_classes=2)
    optimizer = create_optimizer(model, OptimConfig(), layer_decay=0.5, depth=2)
    step = OptimiserStep(
        loss=lambda model, batch: model(batch.images).sum(),
        config=FitConfig(batch=1),
        device=torch.device("cpu"),
    )
    batch = Batch(
        torch.zeros(1, 3, 12, 20), torch.zeros(1, 15), torch.tensor([0]), torch.tensor([0])
    )

    step(TrainState(model, optimizer), batch, lr=0.8)

    rates = {name: group["lr"] for group in optimizer.param_groups for name in [group["scale"]]}
    assert rates == {1.0: 0.8, 0.5: 0.4, 0.25: 0.2, 0.125: 0.1}


@pytest.mark.parametrize("pool", ["mean", "cls"])
@pytest.mark.parametrize(
    ("train_blocks", "expected"),
    [
        (0.5, ("encoder.blocks.11.norm2.", "encoder.blocks.11.mlp.")),
        (1, ("encoder.blocks.11.",)),
        (3, ("encoder.blocks.9.", "encoder.blocks.10.", "encoder.blocks.11.")),
        (12, ("encoder.blocks.",)),
        (None, ("encoder.",)),
    ],
)
def test_the_last_blocks_and_the_head_are_trained(pool, train_blocks, expected) -> None:
    model = classifier("vit-b/16", train_blocks=train_blocks, pool=pool)

    found = {name for name, parameter in model.named_parameters() if parameter.requires_grad}

    always = ("head.", "fc_norm.", "encoder.norm.")
    assert found == {
        name for name, _ in model.named_parameters() if name.startswith((*expected, *always))
    }


def segmenter(*, train_blocks: float | None = None) -> Segmenter:
    with torch.device("meta"):
        model = Segmenter(
            Encoder(ADE20K.model), num_classes=150, dense=ADE20K.dense, head=ADE20K.head
        )
    choose_trained(model, train_blocks)
    return model


def mmsegmentations(name: str, parameter: nn.Parameter) -> tuple[float, float]:
    """Scale and weight decay of a parameter by mmsegmentation's own name for it.

    get_layer_id_for_vit and add_params of its layer_decay_optimizer_constructor.py, with 12 + 2
    layers: embeddings 0, block i i + 1, the rest 13; a parameter of one dimension, or with one of
    two names that no parameter of a backbone has, is not decayed.
    """
    theirs = name.replace("encoder.", "backbone.").replace(".blocks.", ".layers.")
    for part, own in (("relative", "attn.table"), ("layer_scale", "gamma")):
        if (parts := theirs.split("."))[1] == part:
            theirs = f"backbone.layers.{parts[2]}.{own}"
    if theirs in ("backbone.cls_token", "backbone.mask_token", "backbone.pos_embed"):
        layer = 0
    elif theirs.startswith("backbone.patch_embed"):
        layer = 0
    elif theirs.startswith("backbone.layers"):
        layer = int(theirs.split(".")[2]) + 1
    else:
        layer = 13
    kept = parameter.ndim == 1 or theirs.endswith(".bias") or theirs in ("pos_embed", "cls_token")
    return 0.65 ** (14 - layer - 1), 0.0 if kept else 0.05


def test_groups_of_a_segmenter_are_mmsegmentations_parameter_by_parameter() -> None:
    model, optim = segmenter(), ADE20K.optim
    groups = parameter_groups(
        model,
        weight_decay=optim.weight_decay,
        decay_tokens=optim.decay_tokens,
        layer_decay=ADE20K.layer_decay,
        depth=12,
    )
    found = {
        parameter: (group["scale"], group["weight_decay"])
        for group in groups
        for parameter in group["params"]  # type: ignore[attr-defined]
    }

    assert len(found) == len(list(model.parameters()))
    for name, parameter in model.named_parameters():
        assert found[parameter] == pytest.approx(mmsegmentations(name, parameter)), name


def detectron2s(
    name: str, parameter: nn.Parameter, *, layers: int, rate: float, norm: float, positions: float
) -> tuple[float, float]:
    """Scale and weight decay of a parameter by detectron2's own name for it.

    get_vit_lr_decay_rate of modeling/backbone/vit.py, and get_default_optimizer_params of
    solver/build.py with weight_decay 0.1, and others for norms and pos_embed.
    """
    theirs = name.replace("backbone.encoder.", "backbone.net.")
    if (parts := theirs.split("."))[2] == "relative":
        theirs = f"backbone.net.blocks.{parts[3]}.attn.{parts[4]}"
    layer = layers + 1
    if theirs.startswith("backbone"):
        if ".pos_embed" in theirs or ".patch_embed" in theirs:
            layer = 0
        elif ".blocks." in theirs:
            layer = int(theirs.split(".blocks.")[1].split(".")[0]) + 1
    decay = 0.1
    if theirs.endswith("pos_embed"):
        decay = positions
    # Written out: norms of blocks, of the pyramid's convolutions and its first level, of heads.
    elif re.search(r"\.norm\d?\.|levels\.0\.0\.1\.|_head\.\d\.1\.", theirs):
        decay = norm
    return rate ** (layers + 1 - layer), decay


# As spelt in detectron2's configs: rate 0.7, 0.8, 0.9 over 12, 24, 32 layers.
@pytest.mark.parametrize(
    ("config", "layers", "rate", "norm", "positions"),
    [(COCO_B, 12, 0.7, 0.0, 0.0), (COCO_L, 24, 0.8, 0.0, 0.0), (COCO_H, 32, 0.9, 0.1, 0.1)],
    ids="BLH",
)
def test_groups_of_a_detector_are_detectron2s_parameter_by_parameter(
    config: DetectConfig, layers: int, rate: float, norm: float, positions: float
) -> None:
    with torch.device("meta"):
        encoder = Encoder(config.model)
        encoder.norm = nn.Identity()  # type: ignore[assignment]
        model = Detector(PyramidBackbone(encoder, config.dense), num_classes=80)
    choose_trained(model, None)
    optim = config.optim
    groups = parameter_groups(
        model,
        weight_decay=optim.weight_decay,
        decay_tokens=optim.decay_tokens,
        decay_biases=optim.decay_biases,
        decay_norms=optim.decay_norms,
        layer_decay=config.layer_decay,
        depth=config.model.depth,
    )
    found = {
        parameter: (group["scale"], group["weight_decay"])
        for group in groups
        for parameter in group["params"]  # type: ignore[attr-defined]
    }

    assert len(found) == len(list(model.parameters()))
    how = {"layers": layers, "rate": rate, "norm": norm, "positions": positions}
    for name, parameter in model.named_parameters():
        assert found[parameter] == pytest.approx(detectron2s(name, parameter, **how)), name
    assert len({scale for scale, _ in found.values()}) == layers + 2


@pytest.mark.parametrize(
    ("train_blocks", "trained"),
    [
        (0, set()),
        (1, {"blocks.11", "relative.11", "layer_scale.11"}),
        (0.5, {"blocks.11"}),
    ],
)
def test_a_frozen_encoder_trains_the_head_and_the_last_blocks(
    train_blocks: float, trained: set[str]
) -> None:
    model = segmenter(train_blocks=train_blocks)

    names = {name for name, p in model.named_parameters() if p.requires_grad}
    of_encoder = {n.removeprefix("encoder.") for n in names if n.startswith("encoder.")}
    assert {".".join(name.split(".")[:2]) for name in of_encoder} == trained
    others = {name for name, _ in model.named_parameters() if not name.startswith("encoder.")}
    assert others <= names
    if train_blocks == 0.5:
        assert {name.split(".")[2] for name in of_encoder} == {"norm2", "mlp"}
