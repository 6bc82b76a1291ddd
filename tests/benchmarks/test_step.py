"""The sides of the step's benchmark learn, and are counted as what they are."""

from __future__ import annotations

import pytest
from benchmarks.step.measuring import saved_bytes
from benchmarks.step.sides import NAMES, make_batch, make_side

from mae.config.model import ModelConfig
from mae.config.objective import ObjectiveConfig
from mae.model.costs import activation_bytes

SMALL = ModelConfig(
    image_size=(20, 20),
    patch_size=4,
    width=24,
    depth=2,
    num_heads=3,
    decoder_width=16,
    decoder_depth=2,
    decoder_heads=2,
)


@pytest.mark.parametrize("name", NAMES)
def test_every_side_learns_the_batch_it_is_given(name: str) -> None:
    side, batch = make_side(name, SMALL, 3), make_batch(name, SMALL, 3)
    for group in side.optimizer.param_groups:
        group["lr"] = 1e-3

    losses = [float(side.step(batch)) for _ in range(8)]

    assert losses[-1] < losses[0]
    assert side.updating > 0


def test_what_ours_keeps_is_what_the_plan_counts() -> None:
    side, batch = make_side("mae", SMALL, 3), make_batch("mae", SMALL, 3)

    kept = saved_bytes(side, batch)

    expected = 3 * activation_bytes(SMALL, ObjectiveConfig(), half=False, on_cpu=True).kept
    assert kept == pytest.approx(expected, rel=0.05)


def test_every_peer_keeps_more_than_ours() -> None:
    kept = {
        name: saved_bytes(make_side(name, SMALL, 3), make_batch(name, SMALL, 3)) for name in NAMES
    }

    assert min(kept, key=kept.__getitem__) == "mae"
