"""The hidden width of an MLP survives its way through a ratio."""

from __future__ import annotations

import numpy as np

from mae.config.model import hidden_width
from mae.model.autoencoder import MaskedAutoencoder
from mae.model.costs import count_parameters
from mae.model.encoder import Encoder
from tests.model.tiny import tiny_config


def test_every_whole_hidden_width_comes_back_from_its_ratio() -> None:
    widths = np.arange(4, 4097, 4, dtype=np.float64)[:, None]
    hidden = np.arange(1, 4 * 4096 + 1, dtype=np.float64)[None, :]

    # The arithmetic of `hidden_width`, for 16.8 million pairs.
    back = np.floor(widths * (hidden / widths) + 1e-6)

    assert np.array_equal(back, np.broadcast_to(hidden, back.shape))
    assert hidden_width(448, 488 / 448) == 488


def test_a_ratio_that_gives_a_fraction_is_cut_as_it_was() -> None:
    assert hidden_width(192, 3.3) == 633
    assert hidden_width(1408, 48 / 11) == 6144


def test_network_and_costs_have_the_hidden_width_of_the_ratio() -> None:
    config = tiny_config(width=448, num_heads=8, mlp_ratio=488 / 448, decoder_width=448)

    model = MaskedAutoencoder(config)

    assert Encoder(config).blocks[0].mlp.fc1.weight.shape == (488, 448)
    trained, frozen = count_parameters(config)
    assert sum(p.numel() for p in model.parameters()) == trained + frozen
