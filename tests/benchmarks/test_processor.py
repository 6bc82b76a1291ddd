"""The processor is described as the system describes it, with the rates of its products."""

from __future__ import annotations

import pytest
import torch
from benchmarks import processor

AMD = {
    "vendor_id": "AuthenticAMD",
    "cpu family": "25",
    "model": "17",
    "model name": "AMD EPYC 9R14",
    "flags": "fpu avx2 avx512f avx512_bf16",
}


def test_a_processor_is_named_with_family_model_and_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processor, "processor", lambda: AMD)

    found = processor.this_processor()

    assert [found[name] for name in ("name", "family", "model")] == ["AMD EPYC 9R14", "25", "17"]
    assert found["flags"] == "avx512f, avx512_bf16, no amx_bf16"


def test_a_system_without_cpuinfo_gives_a_name_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processor, "processor", dict)

    found = processor.this_processor()

    assert found["name"] and found["vendor"] == "unknown" and "no avx512f" in found["flags"]


def test_products_are_printed_and_bf16_is_not_measured_where_it_is_emulated(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(processor, "processor", lambda: AMD)
    monkeypatch.setattr(processor, "multiplies_bf16", lambda: False)
    monkeypatch.setattr(processor, "SQUARE", (8, 16, 24))
    monkeypatch.setattr(processor, "LAYER", (4, 6, 10))

    values = processor.print_processor()

    lines = capsys.readouterr().out.splitlines()
    assert (
        lines[0].startswith("name AMD EPYC 9R14; vendor Auth") and values["name"] == "AMD EPYC 9R14"
    )
    assert lines[1].startswith("GFLOP/s of a product of 8 x 16 x 24: float32 by torch ")
    assert all(line.endswith("bf16 emulated: not measured") for line in lines[1:3])
    rates = values["gflops 4 x 6 x 10"]
    assert "float32 by torch" in rates and min(rates.values()) > 0


@pytest.mark.parametrize("name", processor.PRODUCTS)
def test_every_product_is_that_of_a_linear_layer(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    _, dtype, multiply = processor.PRODUCTS[name]
    rows, weight = (torch.randn(n, 6, generator=generator).to(dtype) for n in (4, 10))

    made = multiply(rows, weight)

    expected = rows.double() @ weight.double().T
    tolerance = 1e-5 if dtype is torch.float32 else 2e-2  # a rounding of bf16 is 4e-3
    torch.testing.assert_close(made.double(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    ("asked", "emulated", "expected"),
    [
        ("both", False, ("float32",)),
        ("bf16", False, ()),
        ("bf16", True, ("bf16",)),
        ("float32", False, ("float32",)),
    ],
)
def test_bf16_is_left_out_and_said_where_it_is_emulated(
    *,
    asked: str,
    emulated: bool,
    expected: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(processor, "multiplies_bf16", lambda: False)

    assert processor.precisions_of(asked, emulated=emulated) == expected

    said = "bf16: not measured: this processor emulates bf16\n"
    assert capsys.readouterr().out == (
        said if "bf16" not in expected and asked != "float32" else ""
    )
