"""The processor that a benchmark runs on, and how fast it multiplies matrices.

`python -m benchmarks.processor` prints both; every benchmark of a CPU prints them first.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mae.model.onednn_linear import product
from mae.model.processor import mkl_is_narrow, multiplies_bf16, processor
from mae.planning.hardware import cores

FLAGS = ("avx512f", "avx512_bf16", "amx_bf16")
PRECISIONS = ("float32", "bf16")

Shape = tuple[int, int, int]
"""Rows, inputs and outputs of a linear layer."""
SQUARE: Shape = (2048, 2048, 2048)
LAYER: Shape = (784, 768, 3072)
"""The first layer of an MLP of ViT-B/16, for the 49 visible patches of 16 images."""


class _Product(NamedTuple):
    precision: str
    dtype: torch.dtype
    multiply: Callable[[Tensor, Tensor], Tensor]


PRODUCTS = {
    "float32 by torch": _Product("float32", torch.float32, F.linear),
    "float32 by oneDNN": _Product("float32", torch.float32, product),
    "bf16 by oneDNN": _Product("bf16", torch.bfloat16, product),
}
"""Torch's own product is MKL's where torch was built with it."""


def product_rates(shape: Shape, precisions: Sequence[str], *, calls: int = 10) -> dict[str, float]:
    """Measure the products of a linear layer without bias, in GFLOP/s: the best of some calls.

    Args:
        shape: of the layer.
        precisions: those to measure.
        calls: timed calls of each product, in turn, after one that is not timed.
    """
    M, I, O = shape  # noqa: E741
    has_onednn = torch.backends.mkldnn.is_available()
    seconds: dict[str, list[float]] = {
        name: []
        for name, each in PRODUCTS.items()
        if each.precision in precisions and (has_onednn or each.multiply is not product)
    }
    with torch.inference_mode():
        for _ in range(1 + calls):
            for name, taken in seconds.items():
                _, dtype, multiply = PRODUCTS[name]
                rows, weight = torch.ones(M, I, dtype=dtype), torch.ones(O, I, dtype=dtype)
                began = time.perf_counter()
                multiply(rows, weight)
                taken.append(time.perf_counter() - began)
    return {name: 2 * M * I * O / min(taken[1:]) / 1e9 for name, taken in seconds.items()}


def this_processor() -> dict[str, str]:
    """Describe the processor; on systems without /proc/cpuinfo, only its name is known."""
    facts = processor()
    known = facts.get("flags", "").split()
    return {
        "name": facts.get("model name") or platform.processor() or platform.machine(),
        "vendor": facts.get("vendor_id", "unknown"),
        "family": facts.get("cpu family", "unknown"),
        "model": facts.get("model", "unknown"),
        "flags": ", ".join(f"{'' if flag in known else 'no '}{flag}" for flag in FLAGS),
        "cores": f"{cores()}",
        "threads": f"{torch.get_num_threads()}",
        "torch": torch.__version__,
    }


def print_processor() -> dict[str, Any]:
    """Print the processor and its products; return the same for machines."""
    found: dict[str, Any] = dict(this_processor())
    print("; ".join(f"{name} {value}" for name, value in found.items()))
    bf16 = multiplies_bf16()
    for M, I, O in (SQUARE, LAYER):  # noqa: E741
        rates = product_rates((M, I, O), PRECISIONS if bf16 else ("float32",))
        written = [f"{name} {rate:.0f}" for name, rate in rates.items()]
        written += [] if bf16 else ["bf16 emulated: not measured"]
        print(f"GFLOP/s of a product of {M} x {I} x {O}: {', '.join(written)}")
        found[f"gflops {M} x {I} x {O}"] = rates
    narrow = mkl_is_narrow() and torch.backends.cpu.get_cpu_capability() == "AVX512"
    found["float32 linear layers of mae"] = "oneDNN" if narrow else "torch"
    print(f"float32 linear layers of mae: by {'oneDNN' if narrow else 'torch'}", flush=True)
    return found


def precisions_of(asked: str, *, emulated: bool = False) -> tuple[str, ...]:
    """Return the precisions to measure; say so where bf16 would be emulated and is left out.

    Args:
        asked: float32, bf16 or both.
        emulated: whether to measure bf16 nevertheless.
    """
    names = PRECISIONS if asked == "both" else (asked,)
    if "bf16" not in names or emulated or multiplies_bf16():
        return names
    print("bf16: not measured: this processor emulates bf16", flush=True)
    return tuple(name for name in names if name != "bf16")


if __name__ == "__main__":
    print_processor()
