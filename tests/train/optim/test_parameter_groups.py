"""Parameter groups against the published ones and timm's, and what is frozen."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import pytest
import timm
import torch
from timm.optim import param_groups_layer_decay
from torch import nn

from mae.config.run import FitConfig, OptimConfig
from mae.config.sizes import model_config
from mae.data.batching.batch import Batch
from mae.model.classifier import Classifier
from mae.model.create import create
from mae.model.encoder import Encoder
from mae.runs.state import TrainState
from mae.train.optim.parameter_groups import choose_trained, create_optimizer, parameter_groups
from mae.train.step import OptimiserStep
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
