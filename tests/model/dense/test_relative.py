"""Relative positions against written-out attention and transformers."""

from __future__ import annotations

import pytest
import torch
from transformers import BeitConfig
from transformers.models.beit.modeling_beit import BeitRelativePositionBias

from mae.model.dense.relative import DecomposedPositions, TablePositions
from mae.model.transformer import Attention
from tests.model.tiny import D, scrambled

HEADS, HEAD_WIDTH = 3, D // 3
GRID = (2, 5)


def test_decomposed_positions_add_a_product_with_each_offset(generator: torch.Generator) -> None:
    maker = scrambled(DecomposedPositions(HEAD_WIDTH, grid=GRID), generator)
    (h, w), L = GRID, 10
    q = torch.randn(2, HEADS, L, HEAD_WIDTH, generator=generator)

    found = maker(q, grid=GRID)

    expected = torch.zeros(2, HEADS, L, L)
    for query in range(L):
        for key in range(L):
            rows, columns = query // w - key // w, query % w - key % w
            entry = maker.rel_pos_h[rows + h - 1] + maker.rel_pos_w[columns + w - 1]
            expected[:, :, query, key] = q[:, :, query] @ entry
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_a_table_has_an_entry_for_each_offset_and_for_cls() -> None:
    (h, w), L = GRID, 10
    maker = TablePositions(HEADS, grid=GRID)
    maker.table.data = torch.arange(maker.table.numel()).reshape(-1, HEADS).float()

    found = maker(torch.empty(2, HEADS, 1 + L, HEAD_WIDTH), grid=GRID)

    assert found.shape == (1, HEADS, 1 + L, 1 + L)
    assert len(maker.table) == 3 * 9 + 3
    for query in range(L):
        for key in range(L):
            row = (query // w - key // w + h - 1) * (2 * w - 1) + query % w - key % w + w - 1
            assert torch.equal(found[0, :, 1 + query, 1 + key], maker.table[row])
    to_patch, to_cls, own = maker.table[-3:]
    assert torch.equal(found[0, :, 0, 0], own)
    assert (found[0, :, 0, 1:] == to_patch[:, None]).all()
    assert (found[0, :, 1:, 0] == to_cls[:, None]).all()


@pytest.mark.parametrize("grid", [(3, 3), (2, 5), (4, 3)])
def test_a_table_equals_transformers_on_any_grid(
    grid: tuple[int, int], generator: torch.Generator
) -> None:
    # Of a square grid: theirs transposes the table of another before it resizes it.
    maker = scrambled(TablePositions(HEADS, grid=(3, 3)), generator)
    config = BeitConfig(
        hidden_size=D, num_hidden_layers=1, num_attention_heads=HEADS, image_size=12, patch_size=4
    )
    theirs = BeitRelativePositionBias(config)
    theirs.relative_position_bias_table.data = maker.table.data

    found = maker(torch.empty(1, HEADS, 1, HEAD_WIDTH), grid=grid)

    expected = theirs(grid).reshape(found.shape)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("few", [0, 64])
def test_attention_adds_the_bias_to_the_logits(
    few: int, generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mae.model.transformer.FEW_TOKENS", few)
    attention = scrambled(Attention(D, num_heads=HEADS), generator)
    tokens = torch.randn(2, 7, D, generator=generator)
    bias = torch.randn(2, HEADS, 7, 7, generator=generator)

    found = attention(tokens, bias=lambda q: bias)

    q, k, v = attention.split(tokens)
    shares = (q @ k.transpose(-2, -1) / HEAD_WIDTH**0.5 + bias).softmax(dim=-1)
    expected = attention.proj((shares @ v).transpose(1, 2).reshape(2, 7, D))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    # The rows of the tokens that are returned.
    torch.testing.assert_close(attention(tokens, first=4, bias=lambda q: bias), found[:, 4:])
