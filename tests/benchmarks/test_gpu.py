"""What `make gpu` counts, chooses and writes; no GPU is needed for that."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from benchmarks.gpu.__main__ import NO_GPU, main
from benchmarks.gpu.arithmetic import (
    find_peak,
    forward_macs,
    half_precision,
    share_of_peak,
    step_flops,
)
from benchmarks.gpu.report import LoaderRow, Machine, Report, SideRow
from benchmarks.gpu.sides import our_step, peer_step, synthetic_batch, transformers_model
from benchmarks.spread import spread

from mae.config.run import PretrainConfig
from mae.config.sizes import model_config
from mae.model.create import create
from mae.train.resolve import new_state
from tests.model.tiny import batch, scrambled, tiny_config

SQUARE = tiny_config(grid=(4, 4))


# Spec 1.3, in G multiply-accumulates; performance.md, section 1, in G operations.
@pytest.mark.parametrize(
    ("name", "macs", "macs_of_a_light_decoder", "step"),
    [
        ("vit-b/16", 9.78, 5.16, 58.5),
        ("vit-l/16", 20.76, 16.14, 124.2),
        ("vit-h/14", 48.56, 42.43, 291.0),
    ],
)
def test_the_arithmetic_of_the_published_sizes(
    name: str, macs: float, macs_of_a_light_decoder: float, step: float
) -> None:
    config = model_config(name)

    assert forward_macs(config) / 1e9 == pytest.approx(macs, abs=0.006)
    light = replace(config, decoder_depth=1)
    assert forward_macs(light) / 1e9 == pytest.approx(macs_of_a_light_decoder, abs=0.006)
    assert step_flops(config) / 1e9 == pytest.approx(step, abs=0.06)


def test_half_of_an_h100_is_the_rate_that_was_worked_out_on_paper() -> None:
    peak = find_peak("NVIDIA H100 80GB HBM3")

    assert peak is not None
    for name, rate in (("vit-b/16", 8460), ("vit-l/16", 3980), ("vit-h/14", 1700)):
        assert share_of_peak(rate, model_config(name), peak.half) == pytest.approx(0.5, abs=0.002)


@pytest.mark.parametrize(
    ("card", "half", "float32"),
    [
        ("NVIDIA A100-SXM4-80GB", 312, 19.5),
        ("NVIDIA A100 80GB PCIe", 312, 19.5),
        ("NVIDIA H100 80GB HBM3", 989.4, 66.9),
        ("NVIDIA H100 PCIe", 756, 51.2),
        ("NVIDIA H200", 989.4, 66.9),
        ("NVIDIA L4", 121, 30.3),
        ("NVIDIA GeForce RTX 4090", 165.2, 82.6),
        ("Tesla V100-SXM2-16GB", 125, 15.7),
        ("Tesla V100-PCIE-32GB", 112, 14.0),
    ],
)
def test_a_card_is_known_by_the_name_its_driver_gives(
    card: str, half: float, float32: float
) -> None:
    peak = find_peak(card)

    assert peak is not None
    assert (peak.half, peak.float32) == (half * 1e12, float32 * 1e12)


@pytest.mark.parametrize(
    "card",
    [
        "NVIDIA L40S",
        "NVIDIA GH200 480GB",
        "NVIDIA A100-SXM4-40GB MIG 1g.5gb",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA GeForce RTX 4090 D",
        "Tesla V100S-PCIE-32GB",
        "NVIDIA A10G",
    ],
)
def test_a_card_with_a_name_like_anothers_is_not_taken_for_it(card: str) -> None:
    assert find_peak(card) is None


def test_cards_before_ampere_compute_in_fp16() -> None:
    assert [half_precision(c) for c in ((7, 0), (7, 5), (8, 0), (9, 0))] == ["fp16"] * 2 + [
        "bf16"
    ] * 2


def test_transformers_gets_the_same_weights_positions_and_eps(generator: torch.Generator) -> None:
    ours = scrambled(create(SQUARE), generator)
    theirs = transformers_model(ours)
    images, noise = batch(generator, SQUARE, images=5)

    found, expected = theirs(images, noise=noise).loss, ours(images, noise=noise).loss

    assert abs(found.item() - expected.item()) <= 1e-6 * expected.item()
    count = [sum(p.numel() for p in m.parameters() if p.requires_grad) for m in (ours, theirs)]
    assert count[0] == count[1]


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_both_sides_train_on_the_same_batch_and_share_no_weights(precision: str) -> None:
    config = PretrainConfig(model=SQUARE, batch=5, device="cpu", precision=precision)  # type: ignore[arg-type]
    model = create(SQUARE)
    state = new_state(model, config)
    given = synthetic_batch(SQUARE, 5, torch.device("cpu"))
    theirs = peer_step(transformers_model(model), config)
    ours = our_step(state, config)

    pairs = [(ours(given).item(), theirs(given).item()) for _ in range(4)]

    tolerance = 1e-5 if precision == "float32" else 2e-2
    assert all(own == pytest.approx(other, rel=tolerance) for own, other in pairs)
    assert pairs[-1][0] < pairs[0][0]


MACHINE = Machine("NVIDIA L40S", 48 * 2**30, "570.1", "2.14.1", "13.0", "5.24.0", 16)
ROW = SideRow(
    "vit-b/16", "bf16", "mae, eager", batch=512, seconds=(0.1, 0.128, 0.2), share=0.456,
    peak_bytes=31_785_312_000, ratios=(1.3, 1.1, 1.2),
)  # fmt: skip


def test_a_report_says_where_it_was_measured_and_what() -> None:
    report = Report("2026-11-26", MACHINE, peak_known=True, tests="31 passed in 40 s",
                    steps=(ROW,), loader=LoaderRow(256, 15, 16, 4000.0, 3000.0))  # fmt: skip

    page = report.page()

    assert page.startswith("# NVIDIA L40S, 2026-11-26\n")
    assert "driver 570.1, torch 2.14.1 (CUDA 13.0)" in page and "31 passed in 40 s" in page
    cells = (
        "| vit-b/16 | bf16 | mae, eager | 512 | 4,000 | 46% | 31.79 GB | 1.20 (1.10 to 1.30) | 3 |"
    )
    assert cells in page
    assert "3,000 images/s, 75% of the step alone (4,000)" in page
    assert "not known" not in page


def test_what_was_not_measured_is_said() -> None:
    rows = (
        ROW._replace(share=None, ratios=(1.3, 1.1), seconds=(0.128, 0.128)),
        SideRow(model="vit-h/14", precision="bf16", side="mae", note="does not fit this card"),
    )
    report = Report("2026-11-26", MACHINE, peak_known=False, steps=rows)

    page = report.without("the rest", "no time left").page()

    assert "peak of this card is not known" in page and "does not fit this card" in page
    assert "Not measured: the rest (no time left)." in page and "Not measured yet" in page
    assert "| 4,000 |  | 31.79 GB |  | 2 |" in page  # two rounds have no quartiles
    assert json.loads(json.dumps(report.values()))["steps"][1]["batch"] is None


def test_fewer_than_three_pairs_are_no_ratio() -> None:
    assert (spread((1.0, 2.0)), spread((3.0, 1.0, 2.0))) == ("", "2.00 (1.00 to 3.00)")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_and_that_is_no_failure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page, values = tmp_path / "page.md", tmp_path / "values.json"

    assert main(["--tests", f"--out={page}", f"--json={values}"]) == 0

    assert capsys.readouterr().out == f"{NO_GPU}\n" == "not run: no GPU here\n"
    assert not page.exists() and not values.exists()
