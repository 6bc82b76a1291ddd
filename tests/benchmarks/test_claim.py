"""The benchmark of the paper's 3x: both sides are what they are called; what is written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from benchmarks.claim import measuring, report
from benchmarks.claim.__main__ import main
from benchmarks.claim.measuring import Steps, most_held, peak_bytes_elsewhere
from benchmarks.claim.sides import PAIRINGS, SIDES, MaskTokensInEncoder, Side, count_flops

from mae.config.model import ModelConfig
from mae.config.objective import ObjectiveConfig
from mae.config.sizes import model_config
from mae.model.masking import random_masking
from tests.model.plain import masked_mean_error, plain_blocks, plain_norm, plain_target
from tests.model.tiny import batch, scrambled, tiny_config, tiny_model

CPU = torch.device("cpu")
FULL, OURS = PAIRINGS[0]
LIGHT = Side(with_mask_tokens=False, decoder_depth=1)
TINY = tiny_config()


def test_the_encoder_with_mask_tokens_is_that_of_the_paper(generator: torch.Generator) -> None:
    config = tiny_config(decoder_depth=3)
    theirs = MaskTokensInEncoder(tiny_model(generator, mask_ratio=0.6, decoder_depth=3))
    theirs = scrambled(theirs, generator).double()
    images, noise = (part.double() for part in batch(generator, config))

    loss, mask = theirs(images, noise=noise)

    # Every token goes through every block, in its own place.
    encoder, decoder = theirs.model.encoder, theirs.model.decoder
    patches = encoder.patch_embed.proj(images).flatten(2).mT  # B L D
    patches = torch.where(mask[..., None], theirs.mask_token, patches)
    tokens = torch.cat([encoder.cls_token.expand(2, -1, -1), patches], dim=1) + encoder.pos_embed
    latent = plain_norm(encoder.norm, plain_blocks(encoder.blocks, tokens))
    tokens = plain_blocks(decoder.blocks, decoder.embed(latent) + decoder.pos_embed)
    pred = decoder.pred(plain_norm(decoder.norm, tokens))[:, 1:]
    expected = masked_mean_error(pred, plain_target(theirs.model, images), mask)
    assert torch.equal(mask, random_masking(noise, num_keep=6).mask)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("name", "ratios"),
    [
        ("vit-b/16", (2.36, 3.58, 4.48)),
        pytest.param("vit-l/16", (3.23, 3.88, 4.16), marks=pytest.mark.slow),
        pytest.param("vit-h/14", (3.60, 3.97, 4.12), marks=pytest.mark.slow),
    ],
)
def test_operations_are_those_of_the_published_step_but_for_what_both_save(
    name: str, ratios: tuple[float, ...]
) -> None:
    config = model_config(name)
    D, E, P, L = config.width, 512, config.patch_values, config.num_patches
    K = ObjectiveConfig().num_keep(L)
    # Hidden patches projected, visible ones predicted, every token through the last block.
    projected = 2 * (L - K) * P * D
    predicted = 3 * (1 + K) * E * P
    decoded = 3 * (1 + K) * (9 * E**2 + 2 * (1 + L) * E)
    saved = 2 * (projected + predicted + decoded)

    flops = {side: count_flops(config, side) + saved for side in SIDES}

    found = tuple(flops[theirs] / flops[ours] for theirs, ours in PAIRINGS)
    assert found == pytest.approx(ratios, abs=0.006)


def test_a_step_updates_its_own_network_alone() -> None:
    steps = Steps(TINY, SIDES, batch=2, device=CPU)
    models = steps.models
    before = {name: p.detach().clone() for name, p in models[FULL].named_parameters()}
    light = {name: p.detach().clone() for name, p in models[LIGHT].decoder.named_parameters()}

    took, without_update = steps.seconds(FULL)

    assert took > without_update > 0
    for name, parameter in models[FULL].named_parameters():
        assert torch.equal(parameter, before[name]) is ("pos_embed" in name), name
    for name, parameter in models[LIGHT].decoder.named_parameters():
        assert torch.equal(parameter, light[name]), name


def test_all_networks_share_an_encoder_and_two_share_a_decoder() -> None:
    models = Steps(TINY, SIDES, batch=2, device=CPU).models

    assert models[FULL].model is models[OURS] and len(models) == 4
    assert models[OURS].encoder is models[LIGHT].encoder
    assert [len(models[side].decoder.blocks) for side in (OURS, LIGHT)] == [8, 1]


@pytest.mark.slow
def test_the_memory_of_a_network_is_measured_in_a_process_that_has_held_nothing() -> None:
    held = torch.ones(300_000_000 // 4)
    small, large = (
        peak_bytes_elsewhere(TINY, OURS, batch=count, device=CPU) for count in (2, 1024)
    )

    assert 100e6 < small < most_held() - held.nbytes // 2
    assert large > small + 100e6


@pytest.mark.slow
def test_sizes_are_measured_and_counted_and_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def held(config: ModelConfig, side: Side, *, batch: int, device: torch.device) -> int:
        return 3_000_000_000 + 1_500_000_000 * side.with_mask_tokens

    monkeypatch.setattr(measuring, "model_config", lambda _: TINY)
    monkeypatch.setattr(report, "model_config", lambda _: TINY)
    monkeypatch.setattr(measuring, "peak_bytes_elsewhere", held)
    values = tmp_path / "runs" / "claim.json"

    main(["--pairs=3", "--sizes=vit-l/16", "--batch=2", f"--json={values}"])

    page = capsys.readouterr().out
    assert "vit-l/16: batch 2, 3 pairs" in page and "| 1.50 (4.5 and 3 GB) |" in page
    rows = json.loads(values.read_text())["rows"]
    assert [row["model"] for row in rows] == [
        name for name in ("vit-l/16", "vit-b/16", "vit-h/14") for _ in range(3)
    ]
    assert [row["paper"] for row in rows[:3]] == [2.8, None, 3.7]
    for row in rows[:3]:
        assert len(row["time"]) == len(row["without_update"]) == 3 and min(row["time"]) > 0
        assert row["saved"][0] > row["saved"][1] > 0 and row["flops"] > 1
    assert all(row["time"] == [] and row["peak"] is None for row in rows[3:])
