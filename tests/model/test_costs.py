"""What a step is said to cost is what torch counts."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace
from typing import Literal

import pytest
import torch
from benchmarks.memory import kept_for_backward, saved_bytes
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from mae.config.dense import DenseConfig
from mae.config.model import ModelConfig
from mae.config.objective import ObjectiveConfig
from mae.config.sizes import model_config
from mae.model.classifier import Classifier
from mae.model.costs import (
    HALF,
    activation_bytes,
    count_parameters,
    encoder_flops,
    step_flops,
)
from mae.model.create import create
from mae.model.dense.backbone import DenseBackbone
from mae.model.encoder import Encoder
from tests.model.costed import SHAPES, checkpointed, drawn

OBJECTIVE = ObjectiveConfig()


def choose_attention(monkeypatch: pytest.MonkeyPatch, *, few: int, packed: int = 0) -> None:
    """Write out the attention of up to `few` tokens, in bf16 pack up to `packed`, on any CPU."""
    for module in ("transformer", "costs"):
        monkeypatch.setattr(f"mae.model.{module}.FEW_TOKENS", few)
    for module in ("packed_attention", "costs"):
        monkeypatch.setattr(f"mae.model.{module}.MOST_TOKENS", packed)


@pytest.fixture
def written_out(monkeypatch: pytest.MonkeyPatch) -> None:
    choose_attention(monkeypatch, few=64)


@pytest.fixture(params=[(64, 0), (0, 0), (0, 512)], ids=["written_out", "fused", "packed"])
def every_attention(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    few, packed = request.param
    choose_attention(monkeypatch, few=few, packed=packed)


@pytest.mark.parametrize(
    ("name", "trained", "frozen"),
    [
        ("vit-b/16", 111_655_680, 252_160),
        ("vit-l/16", 329_239_296, 302_592),
        ("vit-h/14", 656_613_964, 460_544),
    ],
)
def test_parameters_are_as_many_as_published(name: str, trained: int, frozen: int) -> None:
    # Source: OpenMMLab's metafiles, whose totals count the frozen tables.
    assert count_parameters(model_config(name)) == (trained, frozen)


@pytest.mark.parametrize(
    ("name", "count"),
    [("vit-b/16", 85_798_656), ("vit-l/16", 303_301_632), ("vit-h/14", 630_764_800)],
)
def test_without_a_decoder_parameters_are_as_many_as_timm_counts(name: str, count: int) -> None:
    # Source: timm's vit_*_patch*_224 with num_classes=0, position tables included.
    assert sum(count_parameters(model_config(name), decoder=False)) == count


@pytest.mark.usefixtures("every_attention")
@pytest.mark.parametrize("config", SHAPES.values(), ids=SHAPES)
def test_kept_bytes_are_what_autograd_keeps(
    config: ModelConfig, generator: torch.Generator
) -> None:
    images, noise = drawn(config, generator)

    kept = saved_bytes(create(config), images, noise)

    # No tensor of the size of a token sequence is missed or counted twice.
    found = activation_bytes(config, OBJECTIVE, half=False, on_cpu=True)
    assert found == (pytest.approx(kept, rel=1e-3), 0)


@pytest.mark.slow
@pytest.mark.usefixtures("every_attention")
@pytest.mark.parametrize("config", SHAPES.values(), ids=SHAPES)
def test_kept_bytes_of_half_precision_are_what_autograd_keeps(
    config: ModelConfig, generator: torch.Generator
) -> None:
    images, noise = drawn(config, generator)
    model = create(config)
    # A copy of each weight is kept once, however many the images are.
    two, four = (
        n * saved_bytes(model, images.repeat(n // 2, 1, 1, 1), noise.repeat(n // 2, 1), half=True)
        for n in (2, 4)
    )

    kept = (four - two) / 2
    copies = two - 2 * kept

    found = activation_bytes(config, OBJECTIVE, half=True, on_cpu=True).kept
    assert found == pytest.approx(kept, rel=1e-3)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert copies == pytest.approx(HALF * trained, rel=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("every", [1, 5])
@pytest.mark.parametrize("config", SHAPES.values(), ids=SHAPES)
def test_kept_bytes_are_the_inputs_of_the_runs_that_are_computed_again(
    config: ModelConfig, generator: torch.Generator, every: int, *, half: bool
) -> None:
    images, noise = drawn(config, generator)
    model = checkpointed(create(config), every=every)
    two, four = (
        n * saved_bytes(model, images.repeat(n // 2, 1, 1, 1), noise.repeat(n // 2, 1), half=half)
        for n in (2, 4)
    )

    found = activation_bytes(config, OBJECTIVE, half=half, on_cpu=True, checkpoint_every=every)

    assert found.kept == pytest.approx((four - two) / 2, rel=0.02)


@pytest.mark.parametrize("config", SHAPES.values(), ids=SHAPES)
def test_one_run_computes_all_of_the_larger_side_again(config: ModelConfig) -> None:
    """What is kept without runs, less what is kept beside two of them, is what both compute."""
    how = {"half": False, "on_cpu": True}
    D, E, T = config.width, config.decoder_width, 1 + config.num_patches
    inputs = 4 * ((1 + OBJECTIVE.num_keep(config.num_patches)) * D + T * E)
    whole = activation_bytes(config, OBJECTIVE, **how)
    segments = [activation_bytes(config, OBJECTIVE, **how, checkpoint_every=n) for n in (1, 2, 99)]

    less, larger = whole.kept - segments[-1].kept, segments[-1].recomputed

    assert (less + inputs) / 2 <= larger < less + inputs
    shorter = [found.recomputed for found in segments]
    assert shorter == sorted(shorter)


@pytest.mark.parametrize("pool", ["mean", "cls"])
@pytest.mark.parametrize("config", SHAPES.values(), ids=SHAPES)
def test_bytes_of_a_classifier_are_what_autograd_keeps(
    config: ModelConfig, generator: torch.Generator, pool: Literal["mean", "cls"]
) -> None:
    images, _ = drawn(config, generator)
    model = Classifier(create(config).encoder, num_classes=3, pool=pool)
    given = model.encoder.normalize(images)

    kept = kept_for_backward(model, lambda: model(given).sum()) / len(images)

    # Counted with the last norm, which the mean over patches does without.
    found = activation_bytes(config, None, half=False, on_cpu=True)
    assert 1 <= found.kept / kept < (1.002 if pool == "cls" else 1.06)


@pytest.mark.parametrize("window", [None, 3])
def test_bytes_of_relative_positions_are_what_autograd_keeps(
    window: int | None, generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    choose_attention(monkeypatch, few=0)
    # 16 x 10 patches, which windows of 3 pad to 18 x 12
    config = model_config("vit-ti/4", image_size=(64, 40), width=24, depth=3, num_heads=3)
    blocks = () if window is None else (1,)
    plain = DenseConfig(window=window, global_blocks=blocks)
    images = torch.randn(2, 3, 64, 40, generator=generator)

    def kept(dense: DenseConfig) -> float:
        model = DenseBackbone(Encoder(config), dense, blocks=(2,))
        return kept_for_backward(model, lambda: model(images)[0].sum()) / len(images)

    dense = replace(plain, relative_positions="decomposed")
    found = activation_bytes(config, None, half=False, on_cpu=True, dense=dense).kept
    alone = activation_bytes(config, None, half=False, on_cpu=True).kept
    # Besides, the tables resized and the products of queries with each axis.
    measured = kept(dense) - kept(plain) if window else kept(dense) - kept(DenseConfig())
    assert 0.75 < (found - alone) / measured <= 1


def test_counting_what_a_pass_keeps_keeps_nothing(generator: torch.Generator) -> None:
    class Witness:
        pass

    images, _ = drawn(SHAPES["vit-ti/4 at 28"], generator)
    model = create(SHAPES["vit-ti/4 at 28"]).encoder
    alive = weakref.WeakSet[Witness]()

    def compute() -> Tensor:
        witness = Witness()
        alive.add(witness)
        tokens = model(model.normalize(images))
        tokens.register_hook(lambda _, held=witness: None)  # lives as long as the graph
        assert alive
        total: Tensor = tokens.exp().sum()  # what `exp` keeps is what it gives
        return total

    assert kept_for_backward(model, compute) > 0

    gc.collect()
    assert not alive


@pytest.mark.usefixtures("written_out")
def test_attention_kept_off_the_cpu_has_no_table_of_token_pairs() -> None:
    config = SHAPES["vit-ti/4 at 28"]

    there, elsewhere = (
        activation_bytes(config, OBJECTIVE, half=False, on_cpu=on_cpu) for on_cpu in (True, False)
    )

    assert there.kept > elsewhere.kept


@pytest.mark.usefixtures("written_out")
@pytest.mark.parametrize("every", [None, 1, 2, 99])
def test_flops_are_what_torch_counts(generator: torch.Generator, every: int | None) -> None:
    config = SHAPES["3 x 5 patches"]  # few tokens: every product is a plain one
    images, noise = drawn(config, generator)
    # Torch counts its own linear layers, not oneDNN's.
    model = checkpointed(create(config).double(), every=every)

    with FlopCounterMode(display=False) as counter:
        model(model.normalize(images).double(), noise=noise).loss.backward()

    assert 2 * step_flops(config, OBJECTIVE, checkpoint_every=every) == counter.get_total_flops()


@pytest.mark.parametrize(
    ("name", "page"), [("vit-b/16", 58.5), ("vit-l/16", 124.2), ("vit-h/14", 291.0)]
)
def test_flops_are_the_published_ones_less_what_is_saved_exactly(name: str, page: float) -> None:
    config = model_config(name)
    D, E, P, L = config.width, 512, config.patch_values, config.num_patches
    K = OBJECTIVE.num_keep(L)
    # The published step projects hidden patches, predicts visible ones, and takes every token
    # through the last decoder block.
    projected = 2 * (L - K) * P * D
    predicted = 3 * (1 + K) * E * P
    decoded = 3 * (1 + K) * (E**2 + 8 * E**2 + 2 * (1 + L) * E)

    published = step_flops(config, OBJECTIVE) + 2 * (projected + predicted + decoded)

    assert published / 1e9 == pytest.approx(page, rel=2e-3)


@pytest.mark.usefixtures("written_out")
def test_flops_of_the_encoder_are_what_torch_counts(generator: torch.Generator) -> None:
    config = SHAPES["3 x 5 patches"]
    images, _ = drawn(config, generator)
    model = create(config).double()

    with FlopCounterMode(display=False) as counter:
        model.encoder(model.normalize(images).double())

    assert len(images) * encoder_flops(config) == counter.get_total_flops()
