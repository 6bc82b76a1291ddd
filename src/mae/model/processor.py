"""The processor of this machine, as Linux describes it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path

CPU_INFO = Path("/proc/cpuinfo")


@cache
def processor() -> Mapping[str, str]:
    """Return the fields of the first processor in /proc/cpuinfo; none where there is no such file.

    Torch tells the flags only from 2.14 on and the vendor not at all.
    """
    try:
        first = CPU_INFO.read_text().partition("\n\n")[0]
    except OSError:
        return {}
    fields = (line.partition(":") for line in first.splitlines())
    return {name.strip(): value.strip() for name, _, value in fields}


def mkl_is_narrow() -> bool:
    """Return whether MKL uses only half of the vector width: on processors not known as Intel's.

    The vendor decides and not a measurement, so that a run repeats bit for bit.
    """
    return processor().get("vendor_id", "GenuineIntel") != "GenuineIntel"


def emulates_bf16() -> bool:
    """Return whether bf16 products are slower than float32 on this x86 processor."""
    return "flags" in processor() and not multiplies_bf16()


def multiplies_bf16() -> bool:
    """Return whether the processor has bf16 products of its own: `avx512_bf16` or `amx_bf16`.

    With AVX-512 alone oneDNN emulates them, slower than float32. ARM was not tried.
    """
    return not {"avx512_bf16", "amx_bf16"}.isdisjoint(processor().get("flags", "").split())
