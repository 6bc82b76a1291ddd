"""bf16 on a CPU: products by copies of the weights, cast once; close to float32."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mae.config.model import ModelConfig
from mae.model import onednn_linear
from mae.model.create import create
from mae.model.encoder import PatchEmbed
from mae.model.onednn_linear import HalfWeights, Linear, Multiplier, linear
from mae.model.transformer import Attention
from tests.model.tiny import batch, tiny_model

pytestmark = pytest.mark.skipif(
    not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="oneDNN has no bf16 here"
)
TI = ModelConfig(
    image_size=(32, 32),
    patch_size=4,
    width=192,
    depth=3,
    num_heads=3,
    decoder_width=96,
    decoder_depth=1,
    decoder_heads=2,
)


def half() -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16)


def cosine(left: Tensor, right: Tensor) -> float:
    return F.cosine_similarity(left.double().flatten(), right.double().flatten(), dim=0).item()


@pytest.mark.parametrize(("shape", "out"), [((2, 5, 7), 3), ((2, 5, 3), 31), ((4, 96), 384)])
def test_a_layer_is_exact_up_to_bf16_and_its_gradients_are_float32(
    generator: torch.Generator, shape: tuple[int, ...], out: int
) -> None:
    layer = Linear(shape[-1], out)
    tokens = torch.randn(shape, generator=generator, requires_grad=True)
    upper = torch.randn(*shape[:-1], out, generator=generator).bfloat16()
    wanted = (tokens, layer.weight, layer.bias)

    with HalfWeights(layer), half():
        given = layer(tokens)
        gradients = torch.autograd.grad(given, wanted, upper)

    # Of the same factors, rounded to bf16, in float64.
    rounded = (tokens.bfloat16().double(), layer.weight.bfloat16().double(), layer.bias.double())
    exact = tuple(t.detach().requires_grad_() for t in rounded)
    expected = F.linear(*exact)
    assert given.dtype == torch.bfloat16
    torch.testing.assert_close(given.double(), expected, rtol=2**-8, atol=1e-5)
    for ours, theirs in zip(
        gradients, torch.autograd.grad(expected, exact, upper.double()), strict=True
    ):
        assert ours.dtype == torch.float32 and ours.is_contiguous()
        torch.testing.assert_close(ours.double(), theirs, rtol=2**-8, atol=1e-5)


def test_copies_are_made_on_entry_used_under_autocast_alone_and_dropped() -> None:
    layer = Linear(7, 3)
    tokens, weights = torch.ones(2, 7), HalfWeights(layer)

    for number in range(2):
        nn.init.constant_(layer.weight, number + 1 / 3)
        with weights:
            assert torch.equal(layer.bf16_matrix, layer.weight.bfloat16())
            outside = layer(tokens)
            with half():
                within = layer(tokens)
        assert (outside.dtype, within.dtype) == (torch.float32, torch.bfloat16)
        assert "OneDnn" in type(within.grad_fn).__name__

    assert layer.bf16_matrix is None
    assert set(layer.state_dict()) == {"weight", "bias"}


def test_every_product_of_a_model_has_a_copy(generator: torch.Generator) -> None:
    model = tiny_model(generator)
    parts = [part for part in model.modules() if isinstance(part, nn.Linear | PatchEmbed)]

    with HalfWeights(model):
        assert all(isinstance(part, Multiplier) for part in parts)
        assert all(part.bf16_matrix is not None for part in parts)
    with HalfWeights(model.double()):
        assert all(part.bf16_matrix is None for part in parts)


def test_what_is_compiled_takes_torchs_product(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = Linear(7, 3)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)

    with HalfWeights(layer), half():
        given = layer(torch.ones(2, 7))

    assert "OneDnn" not in type(given.grad_fn).__name__


def test_loss_gradients_masks_and_embeddings_are_those_of_float32(
    generator: torch.Generator,
) -> None:
    model = create(TI)
    images, noise = batch(generator, TI, images=8)
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    parameters = [p for p in model.parameters() if p.requires_grad]

    def take() -> tuple[Tensor, Tensor, list[Tensor], Tensor]:
        output = model(images, noise=noise)
        gradients = torch.autograd.grad(output.loss, parameters)
        return *output, list(gradients), model.encoder.encode(images)

    loss, mask, gradients, features = take()
    with HalfWeights(model), half():
        loss16, mask16, gradients16, features16 = take()

    assert torch.equal(mask, mask16)
    assert loss16.dtype == torch.float32
    assert loss16.item() == pytest.approx(loss.item(), rel=0.01)
    for name, left, right in zip(names, gradients, gradients16, strict=True):
        assert right.dtype == torch.float32
        assert cosine(left, right) > 0.999, name
    assert all(cosine(*pair) > 0.999 for pair in zip(features, features16, strict=True))


@pytest.mark.parametrize("few", [64, 0], ids=["written_out", "fused"])
def test_attention_in_bf16_is_that_of_float32(
    generator: torch.Generator, monkeypatch: pytest.MonkeyPatch, few: int
) -> None:
    monkeypatch.setattr("mae.model.transformer.FEW_TOKENS", few)
    attention = Attention(192, num_heads=3)
    given = torch.randn(2, 50, 192, generator=generator)

    with HalfWeights(attention), half():
        mixed = attention(given)

    assert mixed.dtype == torch.bfloat16
    for left, right in zip(mixed.flatten(0, 1), attention(given).flatten(0, 1), strict=True):
        assert cosine(left, right) > 0.999


def test_a_gelu_within_the_product_is_the_exact_one(
    generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onednn_linear, "mkl_is_narrow", lambda: True)
    inputs = torch.linspace(-12, 12, 100_001)[:, None]
    one, zero = torch.ones(1, 1), torch.zeros(1)

    with torch.no_grad():
        exact = linear(inputs, one, zero, gelu=True)
        with half():
            rounded = linear(inputs, one, zero, bf16=one.bfloat16(), gelu=True)

    expected = F.gelu(inputs.double())
    assert ((exact - expected).abs() <= 1e-6 * inputs.abs()).all()
    # Rounded once; the tail, which is nearly 0, is relative to the input.
    expected = F.gelu(inputs.bfloat16().double())
    error = (rounded.double() - expected).abs()
    assert (error <= 2**-8 * expected.abs() + 1e-6 * inputs.abs()).all()


def test_a_gelu_that_learns_has_torchs_gradient(
    generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onednn_linear, "mkl_is_narrow", lambda: True)
    layer, tokens = Linear(7, 3), torch.randn(5, 7, generator=generator)
    wanted = tuple(layer.parameters())

    given = layer(tokens, gelu=True)

    expected = F.gelu(F.linear(tokens, *wanted))
    gradients = torch.autograd.grad(given.sum(), wanted)
    torch.testing.assert_close(given, expected)
    torch.testing.assert_close(gradients, torch.autograd.grad(expected.sum(), wanted))
