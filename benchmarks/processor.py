"""The processor that a benchmark runs on, and how fast it multiplies matrices.

`python -m benchmarks.processor` prints both; every benchmark of a CPU prints them first.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mae.model.onednn_linear import product
from mae.model.processor import mkl_is_narrow, multiplies_bf16, processor
from mae.planning.hardware import cores

FLAGS = ("avx512f", "avx512_bf16", "amx_bf16")
EMULATED = "not measured: this processor emulates bf16"

Shape = tuple[int, int, int]
"""Rows, inputs and outputs of a linear layer."""
SQUARE: Shape = (2048, 2048, 2048)
LAYER: Shape = (784, 768, 3072)
"""The first layer of an MLP of ViT-B/16, for the 49 visible patches of 16 images."""


class Processor(NamedTuple):
    """What the system says of a processor; an empty string or tuple where it says nothing."""

    name: str
    vendor: str
    family: str
    model: str
    flags: tuple[str, ...]
    """Those of `FLAGS` that it has."""
    cores: int
    threads: int
    """Of torch."""
    torch: str

    def written(self) -> str:
        """Give one line."""
        kind = f" ({self.vendor}, family {self.family}, model {self.model})" if self.vendor else ""
        flags = ", ".join(f"{'' if flag in self.flags else 'no '}{flag}" for flag in FLAGS)
        return (
            f"{self.name}{kind}; {self.cores} cores, {self.threads} threads; {flags}; "
            f"torch {self.torch}"
        )


def this_processor() -> Processor:
    """Describe the processor; on systems without /proc/cpuinfo, only a name is known."""
    facts = processor()
    known = facts.get("flags", "").split()
    return Processor(
        name=facts.get("model name") or platform.processor() or platform.machine(),
        vendor=facts.get("vendor_id", ""),
        family=facts.get("cpu family", ""),
        model=facts.get("model", ""),
        flags=tuple(flag for flag in FLAGS if flag in known),
        cores=cores(),
        threads=torch.get_num_threads(),
        torch=torch.__version__,
    )


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


def product_rates(shape: Shape, *, bf16: bool, calls: int = 10) -> dict[str, float]:
    """Measure the products of a linear layer without bias, in GFLOP/s: the best of some calls.

    Args:
        shape: of the layer.
        bf16: whether to measure bf16 as well.
        calls: timed calls of each, in turn, after one that is not timed.
    """
    M, I, O = shape  # noqa: E741
    measured = {
        name: each
        for name, each in PRODUCTS.items()
        if (bf16 or each.precision != "bf16")
        and (each.multiply is not product or torch.backends.mkldnn.is_available())
    }
    seconds: dict[str, list[float]] = {name: [] for name in measured}
    with torch.inference_mode():
        for _ in range(1 + calls):
            for name, (_, dtype, multiply) in measured.items():
                rows, weight = torch.ones(M, I, dtype=dtype), torch.ones(O, I, dtype=dtype)
                began = time.perf_counter()
                multiply(rows, weight)
                seconds[name].append(time.perf_counter() - began)
    return {name: 2 * M * I * O / min(each[1:]) / 1e9 for name, each in seconds.items()}


def print_processor() -> dict[str, Any]:
    """Print the processor and its products; return the same for machines."""
    this, bf16, found = this_processor(), multiplies_bf16(), {}
    print(this.written())
    for M, I, O in (SQUARE, LAYER):  # noqa: E741
        shape = f"{M} x {I} x {O}"
        found[shape] = product_rates((M, I, O), bf16=bf16)
        rates = [f"{name} {rate:.0f}" for name, rate in found[shape].items()]
        rates += [] if bf16 else ["bf16 emulated: not measured"]
        print(f"GFLOP/s of a product of {shape}: {', '.join(rates)}")
    narrow = mkl_is_narrow() and torch.backends.cpu.get_cpu_capability() == "AVX512"
    ours = "oneDNN" if narrow else "torch"
    print(f"float32 linear layers of mae: by {ours}", flush=True)
    return this._asdict() | {"product_gflops": found, "float32_linear": ours}


if __name__ == "__main__":
    print_processor()
