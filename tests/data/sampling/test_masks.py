"""Masks depend on seed, epoch and sample alone, and one module draws them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import mae
from mae.config.run import ObjectiveConfig, PretrainConfig
from mae.data.sampling.draws import Stream, uniform
from mae.data.sampling.masks import mask_noise
from mae.errors import ConfigError
from mae.model.masking import random_masking

IDS = np.array([7, 0, 12345])
RANDOM = ObjectiveConfig()


def test_noise_depends_on_seed_epoch_and_sample_alone() -> None:
    noise = mask_noise(IDS, RANDOM, grid=(3, 5), seed=1, epoch=2)

    assert noise.shape == (3, 15) and noise.dtype == torch.float32
    assert torch.equal(noise[1:2], mask_noise(IDS[1:2], RANDOM, grid=(3, 5), seed=1, epoch=2))
    for other in ({"seed": 2, "epoch": 2}, {"seed": 1, "epoch": 3}):
        assert not torch.equal(noise, mask_noise(IDS, RANDOM, grid=(3, 5), **other))


def test_noise_is_bit_for_bit_that_of_version_0_1() -> None:
    noise = mask_noise(np.array([7, 2]), RANDOM, grid=(2, 3), seed=5, epoch=3)

    assert (noise * 2**24).tolist() == [  # printed by 0.1.0
        [5857972, 186335, 837815, 10152964, 10701156, 9039194],
        [4669147, 1742107, 14609694, 14433027, 15296773, 12036941],
    ]


def test_one_module_alone_draws_mask_noise() -> None:
    source = Path(mae.__file__).parent

    users = {p.name for p in source.rglob("*.py") if "Stream.MASK" in p.read_text("utf-8")}

    assert users == {"masks.py"}


def hidden(objective: ObjectiveConfig, grid: tuple[int, int], *, images: int = 8) -> torch.Tensor:
    """Return which patches a model would hide: B h w bool."""
    noise = mask_noise(np.arange(images), objective, grid=grid, seed=5)
    assert noise.dtype == torch.float32 and 0 <= noise.min() and noise.max() < 1
    num_keep = objective.num_keep(grid[0] * grid[1])
    return random_masking(noise, num_keep=num_keep).mask.view(images, *grid)


@pytest.mark.parametrize("ratio", [0.25, 0.5, 0.6, 0.75, 0.8])
@pytest.mark.parametrize("edge", [1, 2, 3, 4])
@pytest.mark.parametrize("grid", [(3, 5), (4, 6), (7, 4), (14, 14)])
def test_blocks_are_aligned_cells_and_one_at_most_is_cut(
    grid: tuple[int, int], edge: int, ratio: float
) -> None:
    objective = ObjectiveConfig(mask_kind="block", mask_block=edge, mask_ratio=ratio)

    for mask in hidden(objective, grid):
        assert int((~mask).sum()) == math.floor(grid[0] * grid[1] * (1 - ratio) + 1e-4)
        cells = [
            mask[row : row + edge, column : column + edge]
            for row in range(0, grid[0], edge)
            for column in range(0, grid[1], edge)
        ]
        assert sum(bool(cell.any()) and not bool(cell.all()) for cell in cells) <= 1


def test_blocks_are_drawn_from_the_numbers_of_their_stream() -> None:
    objective = ObjectiveConfig(mask_kind="block", mask_ratio=0.6)
    # 3 x 5 patches, in 2 x 3 cells of 2 x 2, some of them smaller.
    cells = ["aabbc", "aabbc", "ddeef"]
    numbers = uniform(5, 0, np.arange(8), stream=Stream.MASK, count=15 + 6)

    for drawn, mask in zip(numbers.tolist(), hidden(objective, (3, 5)), strict=True):
        of_cell = dict(zip("abcdef", drawn[15:], strict=True))
        order = sorted(range(15), key=lambda i: (of_cell["".join(cells)[i]], drawn[i]))
        assert sorted(order[:6]) == torch.nonzero(~mask.flatten())[:, 0].tolist()


@pytest.mark.parametrize("grid", [(2, 2), (4, 6), (14, 8)])
def test_a_grid_keeps_the_same_one_of_each_two_by_two(grid: tuple[int, int]) -> None:
    places = set()
    for mask in hidden(ObjectiveConfig(mask_kind="grid"), grid, images=64):
        rows, columns = torch.nonzero(~mask).T.tolist()
        kept = {(row % 2, column % 2) for row, column in zip(rows, columns, strict=True)}
        assert len(kept) == 1 and len(rows) == grid[0] * grid[1] // 4
        places |= kept

    assert places == {(0, 0), (0, 1), (1, 0), (1, 1)}


def test_the_place_in_a_grid_is_the_last_number_of_the_stream() -> None:
    numbers = uniform(5, 0, np.arange(8), stream=Stream.MASK, count=24 + 1)[:, -1]

    for number, mask in zip(
        numbers, hidden(ObjectiveConfig(mask_kind="grid"), (4, 6)), strict=True
    ):
        row, column = divmod(math.floor(4 * number), 2)
        assert not mask[row::2, column::2].any()


@pytest.mark.parametrize("grid", [(3, 4), (4, 5)])
def test_a_grid_of_odd_edges_is_refused(grid: tuple[int, int]) -> None:
    objective = ObjectiveConfig(mask_kind="grid")

    with pytest.raises(
        ConfigError, match=rf"expected even numbers .*, got \({grid[0]}, {grid[1]}\)"
    ):
        objective.require_grid(grid)
    with pytest.raises(ConfigError, match="expected even"):  # of the first part of a run alone
        PretrainConfig(objective=objective, start_size=(grid[0] * 16, grid[1] * 16))


@pytest.mark.parametrize(
    ("kind", "ratio"),
    [("grid", 0.75), ("block", 0.75), ("block", 0.875)],
    # of a block, a whole cell is visible, or half of one
)
def test_every_patch_is_visible_in_as_many_masks(kind: Any, ratio: float) -> None:
    objective = ObjectiveConfig(mask_kind=kind, mask_ratio=ratio)

    visible = ~hidden(objective, (4, 4), images=4000)

    spread = math.sqrt(ratio * (1 - ratio) / 4000)
    assert (visible.float().mean(dim=0) - (1 - ratio)).abs().max() < 4 * spread


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"mask_kind": "block", "mask_block": 0}, "mask_block: expected at least 1, got 0"),
        (
            {"mask_kind": "grid", "mask_ratio": 0.5},
            "expected 0.75 with mask_kind grid, got 0.5",
        ),
        ({"mask_block": 3}, "mask_block: expected 2 unless mask_kind is block, got 3"),
    ],
)
def test_masks_that_cannot_be_drawn_are_refused(fields: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        ObjectiveConfig(**fields)
