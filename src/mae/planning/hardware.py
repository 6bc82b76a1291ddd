"""Hardware detection, and data-sheet specifications of common GPUs."""

from __future__ import annotations

import difflib
import math
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch

from mae.errors import ConfigError
from mae.model.processor import multiplies_bf16
from mae.parallel.processes import ProcessInfo, is_slurm_task


class Card(NamedTuple):
    """Data-sheet specification of a GPU."""

    memory_gib: float
    """Usable memory, slightly less than the advertised size."""
    half_tflops: float
    """Peak of dense matrix products in bf16, or in fp16 for GPUs without bf16."""
    float32_tflops: float
    """Peak in float32 without TF32, which training does not use."""
    has_bf16: bool = True


# Source: the vendors' data sheets; the fastest board where there are several. Dense, with float32
# accumulation.
CARDS = {
    "a100": Card(79, 312, 19.5),
    "h100": Card(79, 989, 67),
    "h200": Card(139, 989, 67),
    "l4": Card(22, 121, 30.3),
    "l40s": Card(44, 362, 91.6),
    "rtx4090": Card(23.5, 165, 82.6),
    "rtx3090": Card(23.5, 71, 35.6),
    "v100": Card(31.5, 125, 15.7, has_bf16=False),
}
MOST = 4096  # maximum number of GPUs accepted for one job


class Machine(NamedTuple):
    """A machine: a number of ranks, each with its own memory."""

    name: str
    ranks: int
    device: str
    """cpu, cuda or mps."""
    memory_bytes: float
    """Per rank."""
    card: str | None = None
    """Key in `CARDS`; None if the peak is unknown."""
    elsewhere: bool = False
    has_bf16: bool = False

    def peak_flops(self, precision: str) -> float:
        """Return the peak FLOP/s of a rank; nan if unknown."""
        if self.card is None:
            return math.nan
        card = CARDS[self.card]
        return 1e12 * (card.float32_tflops if precision == "float32" else card.half_tflops)


def this_machine(device: str) -> Machine:
    """Describe the current machine for a device.

    Raises:
        ConfigError: for a device this machine does not have.
    """
    found = choose_device(device)
    if found.type == "cuda":
        facts = torch.cuda.get_device_properties(found)
        card = card_named(facts.name)
        half = has_bf16(found)
        return Machine(facts.name, 1, "cuda", facts.total_memory, card, has_bf16=half)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    name = f"this machine's {found.type}"
    return Machine(name, 1, found.type, memory, has_bf16=has_bf16(found))


def machine_of(text: str) -> Machine:
    """Parse GPU name and count: h100, or h100x8.

    Raises:
        ConfigError: for an unknown GPU or a malformed count; suggests the closest name.
    """
    asked = text.lower()
    name, _, count = (asked, "x", "1") if asked in CARDS else asked.rpartition("x")
    if name in CARDS and count.isdecimal() and 1 <= int(count) <= MOST:
        card, ranks = CARDS[name], int(count)
        memory, half = card.memory_gib * 2**30, card.has_bf16
        return Machine(name, ranks, "cuda", memory, name, elsewhere=True, has_bf16=half)
    if name not in CARDS:
        name = re.sub(r"x\d{0,3}$", "", asked)
    near = [n for t in (name, asked) for n in difflib.get_close_matches(t, CARDS, n=1)]
    hint = f"did you mean {near[0]}x8?" if near else f"known are {', '.join(CARDS)}"
    raise ConfigError(f"gpu: got {text!r}, expected a card and how many, as in h100x8; {hint}")


def with_ranks(machine: Machine, ranks: int) -> Machine:
    """Return the machine as so many ranks; those of a CPU divide its memory, a GPU is of one.

    Raises:
        ConfigError: for less than 1 or too many, or another number than the machine's.
    """
    if not 1 <= ranks <= MOST:
        raise ConfigError(f"ranks: got {ranks}, expected 1 to {MOST}")
    if machine.ranks not in (1, ranks):
        raise ConfigError(
            f"ranks: got {ranks} for {machine.ranks} x {machine.name}, expected as many; drop one"
        )
    memory = machine.memory_bytes / (ranks if machine.device == "cpu" else 1)
    return machine._replace(ranks=ranks, memory_bytes=memory)


def card_named(device: str) -> str | None:
    """Find the key in `CARDS` for a driver's device name ("NVIDIA H100 80GB HBM3")."""
    words = re.split(r"[^a-z0-9]+", device.lower().replace("rtx ", "rtx"))
    return next((name for name in CARDS if name in words), None)


def choose_device(name: str) -> torch.device:
    """Return the device of a name; "auto" selects the best one available.

    Raises:
        ConfigError: for a device this machine does not have.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"device: {name!r} cannot be used here ({reason}); use auto, cpu, cuda or mps"
        ) from error
    return device


def has_bf16(device: torch.device) -> bool:
    """Return whether a device has native bf16 matrix products.

    NVIDIA Ampere or newer, and processors with `avx512_bf16` or `amx_bf16`. Torch also reports
    support for older ones, but emulates it there, slower than float32.
    """
    if device.type == "cpu":
        return multiplies_bf16()
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)


@contextmanager
def use_threads(count: int | None) -> Iterator[None]:
    """Set the number of torch threads within a block; None keeps the current number.

    One thread, to measure one core or to run one worker per core.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def cores() -> int:
    """Count the cores available to this process, respecting affinity and container limits."""
    allowed = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        allowed = len(os.sched_getaffinity(0))
    return max(1, math.ceil(min(allowed, _quota(Path("/sys/fs/cgroup")))))


def cores_per_rank(process: ProcessInfo) -> int:
    """Count the cores of a rank: its part of the machine's, or those that SLURM bound it to."""
    own = os.environ.get("SLURM_CPUS_PER_TASK", "") if is_slurm_task() else ""
    bound = min(cores(), int(own)) if own.isdecimal() else 1
    return max(1, cores() // process.local_world_size, bound)


def gpu_index(process: ProcessInfo) -> int:
    """Return the index of the GPU of a rank; SLURM may show each task its own GPU alone."""
    return 0 if is_slurm_task() and torch.cuda.device_count() == 1 else process.local_rank


def _quota(folder: Path) -> float:
    """Return the CPU quota of the container in cores (cgroup v2); infinity without a limit."""
    try:
        most, period = (folder / "cpu.max").read_text().split()
        return math.inf if most == "max" else int(most) / int(period)
    except (OSError, ValueError):
        return math.inf
