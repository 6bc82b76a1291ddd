"""Attention by batched bf16 products: equal to attention in float64, gradients included."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mae.model import packed_attention
from mae.model.onednn_linear import HalfWeights
from mae.model.packed_attention import attend_packed, takes_packed
from mae.model.transformer import Attention
from tests.model.test_half_weights import cosine, half

pytestmark = pytest.mark.skipif(
    not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="oneDNN has no bf16 here"
)


@pytest.fixture(autouse=True)
def chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take these products whatever the processor of the test."""
    monkeypatch.setattr(packed_attention, "MOST_TOKENS", 512)


def exact(qkv: Tensor, first: int) -> Tensor:
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    return F.scaled_dot_product_attention(q[:, :, first:], k, v).transpose(1, 2)


@pytest.mark.parametrize("first", [0, 4])
@pytest.mark.parametrize("chunk_bytes", [1, 3 * 7 * 7 * 2 * 2, 1 << 20], ids=["1", "2", "all"])
@pytest.mark.parametrize("kept", [64, 0], ids=["kept", "again"])
def test_output_and_gradient_are_those_of_float64_up_to_bf16(
    generator: torch.Generator,
    monkeypatch: pytest.MonkeyPatch,
    first: int,
    chunk_bytes: int,
    kept: int,
) -> None:
    monkeypatch.setattr(packed_attention, "CHUNK_BYTES", chunk_bytes)
    monkeypatch.setattr(packed_attention, "KEPT_TOKENS", kept)
    qkv = torch.randn(5, 7, 3, 3, 8, generator=generator).bfloat16().requires_grad_()
    upper = torch.randn(5, 7 - first, 3, 8, generator=generator).bfloat16()
    double = qkv.detach().double().requires_grad_()

    mixed = attend_packed(qkv, first=first)
    expected = exact(double, first)

    assert mixed.dtype == torch.bfloat16
    torch.testing.assert_close(mixed.double(), expected, rtol=2**-6, atol=2**-6)
    (found,) = torch.autograd.grad(mixed, qkv, upper)
    (right,) = torch.autograd.grad(expected, double, upper.double())
    torch.testing.assert_close(found.double(), right, rtol=2**-5, atol=2**-5)
    assert cosine(found, right) > 0.9999
    assert not found[:, :first, 0].any()


def test_how_images_are_divided_changes_no_bit(
    generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    qkv = torch.randn(5, 70, 3, 2, 8, generator=generator).bfloat16().requires_grad_()

    def take() -> tuple[Tensor, Tensor]:
        mixed = attend_packed(qkv)
        return mixed, torch.autograd.grad(mixed, qkv, torch.ones_like(mixed))[0]

    whole = take()
    monkeypatch.setattr(packed_attention, "CHUNK_BYTES", 1)

    assert all(map(torch.equal, take(), whole))


@pytest.mark.parametrize("images", [1, 2])
def test_products_get_no_views_which_they_would_copy_each_time(images: int) -> None:
    qkv = torch.zeros(images, 7, 3, 3, 8)

    assert packed_attention._by_head(qkv).is_contiguous()


def test_an_attention_of_many_tokens_keeps_no_weights_for_the_backward_pass(
    generator: torch.Generator,
) -> None:
    qkv = torch.randn(2, 70, 3, 3, 8, generator=generator).bfloat16().requires_grad_()
    sizes = list[int]()

    def note(kept: Tensor) -> Tensor:
        sizes.append(kept.numel())
        return kept

    with torch.autograd.graph.saved_tensors_hooks(note, lambda kept: kept):
        attend_packed(qkv)

    assert sizes == [qkv.numel()]


def test_a_network_takes_it_where_it_is_the_faster_way(
    generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    attention, taken = Attention(24, num_heads=3), list[int]()
    monkeypatch.setattr(
        "mae.model.transformer.attend_packed",
        lambda qkv, first: taken.append(first) or attend_packed(qkv, first=first),
    )
    tokens = torch.randn(2, 70, 24, generator=generator)

    with HalfWeights(attention), half():
        mixed = attention(tokens, first=3)

    assert taken == [3]
    assert cosine(mixed, attention(tokens, first=3)) > 0.999
    assert taken == [3]


def test_other_types_devices_and_sizes_take_the_general_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    qkv = torch.zeros(2, 7, 3, 3, 8, dtype=torch.bfloat16)

    assert takes_packed(qkv)
    assert not takes_packed(qkv.float())
    assert not takes_packed(qkv.to("meta"))
    assert not takes_packed(qkv[:0])
    monkeypatch.setattr(packed_attention, "MOST_TOKENS", 6)
    assert not takes_packed(qkv)
