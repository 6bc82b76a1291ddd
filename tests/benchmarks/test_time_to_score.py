"""Every side trains and is compared with the first; the textbook's encoder is read as it is."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from benchmarks import time_to_score
from benchmarks.textbook import TextbookMAE
from benchmarks.time_to_score import SIDES, _encoder_of, measure, ours, textbook

from tests.model.tiny import scrambled, tiny_config


def test_the_encoder_of_the_textbook_is_the_same_function(generator: torch.Generator) -> None:
    config = tiny_config(grid=(3, 3))
    model = scrambled(TextbookMAE(config), generator).eval()
    images = torch.randn(2, config.channels, *config.image_size, generator=generator)

    encoder = _encoder_of(model, config).eval()

    with torch.inference_mode():
        tokens = model.proj(images).flatten(2).transpose(1, 2) + model.pos[:, 1:]
        cls = (model.cls_token + model.pos[:, :1]).expand(2, -1, -1)
        tokens = torch.cat([cls, tokens], dim=1)
        for block in model.blocks:
            tokens = block(tokens)
        torch.testing.assert_close(encoder(images), model.norm(tokens), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_every_side_trains_for_the_table(
    precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time_to_score, "SAMPLES", 2 * time_to_score.BATCH)
    short = replace(time_to_score._shorter(), steps=2, epochs=2)

    for encoder, seconds in (
        textbook(precision, 0, tmp_path),
        ours(short, precision, 0, tmp_path / "run"),
    ):
        assert seconds > 0
        assert all(p.isfinite().all() and p.dtype == torch.float32 for p in encoder.parameters())
    assert (
        json.loads((tmp_path / "run" / "run.json").read_text())["config"]["precision"] == precision
    )


def test_each_row_is_compared_with_the_first_seed_by_seed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def trained(seconds: float, precision: str, seed: int, folder: Path) -> object:
        assert folder.parent == tmp_path and not folder.exists()
        return torch.nn.Identity(), seconds * (1 + seed)

    (tmp_path / "textbook-float32-0").mkdir()  # left by a killed call
    monkeypatch.setattr(time_to_score, "_scores", lambda _: [80.0, 90.0])
    for name, seconds in zip(SIDES, (400.0, 300.0, 100.0), strict=True):
        monkeypatch.setitem(SIDES, name, partial(trained, seconds))
        for seed in (0, 1):
            measure(tmp_path, name, "float32", seed)

    lines = [*time_to_score.table(tmp_path, [(name, "float32") for name in SIDES], [0, 1])]

    assert lines[1].startswith("textbook | float32 | 600 (400 800) | 1.00 (1.00 1.00) | 80.0 (80.")
    assert lines[3].startswith("demo's recipe, 6 epochs | float32 | 150 (100 200) | 0.25 (0.25 0.")
