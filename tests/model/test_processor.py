"""What the processor can do is read from /proc/cpuinfo."""

from __future__ import annotations

from pathlib import Path

import pytest

from mae.model import processor as module
from mae.model.processor import emulates_bf16, mkl_is_narrow, multiplies_bf16, processor


def cpu_info(vendor: str, flags: str) -> str:
    one = f"processor\t: 0\nvendor_id\t: {vendor}\nmodel name\t: A: B\nflags\t\t: {flags}\n"
    return f"{one}power management:\n\n{one.replace(': 0', ': 1')}\n"


@pytest.mark.parametrize(
    ("text", "narrow", "own", "emulated"),
    [
        (cpu_info("GenuineIntel", "avx512f avx512vl"), False, False, True),
        (cpu_info("GenuineIntel", "avx512f amx_bf16 amx_tile"), False, True, False),
        (cpu_info("AuthenticAMD", "avx2"), True, False, True),
        (cpu_info("AuthenticAMD", "avx512f avx512_bf16"), True, True, False),
        ("processor\t: 0\nFeatures\t: fp asimd bf16\nCPU implementer\t: 0x41\n", *3 * [False]),
        ("", *3 * [False]),
        (None, *3 * [False]),
    ],
    ids=["xeon", "xeon_amx", "zen3", "zen4", "arm", "empty", "no_file"],
)
def test_the_vendor_decides_on_float32_and_the_flags_on_bf16(
    text: str | None,
    *,
    narrow: bool,
    own: bool,
    emulated: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if text is not None:
        (tmp_path / "cpuinfo").write_text(text)
    monkeypatch.setattr(module, "CPU_INFO", tmp_path / "cpuinfo")
    processor.cache_clear()

    try:
        assert (mkl_is_narrow(), multiplies_bf16(), emulates_bf16()) == (narrow, own, emulated)
    finally:
        processor.cache_clear()
