"""Linear layers are torch's, whichever product computes them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mae.model import onednn_linear
from mae.model.onednn_linear import Linear, linear

by_onednn = pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() != "AVX512",
    reason="oneDNN is not taken without AVX-512",
)


@pytest.fixture(params=[True, False], ids=["narrow_mkl", "full_mkl"])
def narrow(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Both kinds of processors, whichever this one is."""
    monkeypatch.setattr(onednn_linear, "mkl_is_narrow", lambda: request.param)
    return bool(request.param)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture
def without_onednn() -> Iterator[None]:
    before = torch.backends.mkldnn.set_flags(False)
    yield
    torch.backends.mkldnn.set_flags(before[0])


@pytest.mark.parametrize(
    ("shape", "out"), [((2, 5, 7), 3), ((2, 5, 3), 31), ((4, 6), 5), ((1, 50, 96), 384)]
)
def test_output_and_gradients_are_those_of_torch_in_float64(
    generator: torch.Generator, *, narrow: bool, shape: tuple[int, ...], out: int
) -> None:
    tokens = torch.randn(shape, generator=generator, requires_grad=True)
    weight = torch.randn(out, shape[-1], generator=generator, requires_grad=True)
    bias = torch.randn(out, generator=generator, requires_grad=True)
    upper = torch.randn(*shape[:-1], out, generator=generator)

    given = linear(tokens, weight, bias)
    gradients = torch.autograd.grad(given, (tokens, weight, bias), upper)

    exact = tuple(t.detach().double().requires_grad_() for t in (tokens, weight, bias))
    expected = F.linear(*exact)
    torch.testing.assert_close(given, expected.float(), rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(
        gradients, torch.autograd.grad(expected, exact, upper.double()), strict=True
    ):
        assert ours.is_contiguous()
        torch.testing.assert_close(ours, theirs.float(), rtol=1e-5, atol=1e-5)


@by_onednn
def test_a_step_takes_the_faster_product(generator: torch.Generator, *, narrow: bool) -> None:
    layer = Linear(7, 3)

    tokens = torch.randn(2, 5, 7, generator=generator)
    given = layer(tokens)

    assert ("OneDnn" in type(given.grad_fn.next_functions[0][0]).__name__) == narrow
    assert narrow or torch.equal(given, nn.Linear.forward(layer, tokens))


def test_it_can_be_turned_off(
    generator: torch.Generator, without_onednn: None, *, narrow: bool
) -> None:
    tokens = torch.randn(2, 5, 7, generator=generator, dtype=torch.float32, requires_grad=True)
    layer = Linear(7, 3)

    (gradient,) = torch.autograd.grad(layer(tokens).square().sum(), tokens, create_graph=True)

    assert gradient.requires_grad  # a gradient of a gradient
    assert torch.equal(layer(tokens), nn.Linear.forward(layer, tokens))


def test_frozen_parts_get_no_gradient(generator: torch.Generator, *, narrow: bool) -> None:
    tokens = torch.randn(2, 5, 7, generator=generator)
    layer = Linear(7, 3)
    layer.weight.requires_grad_(requires_grad=False)

    layer(tokens).sum().backward()

    assert layer.weight.grad is None
    assert layer.bias.grad is not None
    torch.testing.assert_close(layer.bias.grad, torch.full((3,), 10.0))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_types_go_to_torch_bit_for_bit(
    generator: torch.Generator, dtype: torch.dtype
) -> None:
    tokens = torch.randn(2, 5, 7, generator=generator).to(dtype)
    layer = Linear(7, 3).to(dtype)

    assert torch.equal(layer(tokens), nn.Linear.forward(layer, tokens))


def test_autocast_computes_in_half_precision(generator: torch.Generator) -> None:
    tokens: Tensor = torch.randn(2, 5, 7, generator=generator)
    layer = Linear(7, 3)

    with torch.autocast("cpu", torch.bfloat16):
        given = layer(tokens)

    assert given.dtype == torch.bfloat16


def test_no_tokens_give_no_tokens() -> None:
    assert Linear(7, 3)(torch.zeros(0, 5, 7)).shape == (0, 5, 3)
