"""Choose what each of several ranks holds: its device, the whole model (DDP) or a part (FSDP2)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TypeVar

import torch

from mae.config.kinds import AnyRunConfig
from mae.config.run import FitConfig
from mae.errors import ConfigError
from mae.parallel.processes import ProcessInfo
from mae.planning.estimate import Estimate, GiB
from mae.planning.exchange import why_not_sharded
from mae.planning.hardware import choose_device, gpu_index, this_machine

RunConfig = TypeVar("RunConfig", bound=AnyRunConfig)


def claim_device(config: FitConfig, process: ProcessInfo) -> None:
    """Make one GPU the `cuda` of each rank of a machine.

    Raises:
        ConfigError: for a device that takes one process, or fewer GPUs than ranks.
    """
    if process.world_size == 1:
        return
    if torch.cuda.is_available() and config.device in ("auto", "cuda"):
        kind = "cuda"
    else:
        kind = f"{choose_device(config.device)}"
    if kind == "cpu":
        return
    if kind != "cuda":
        raise ConfigError(
            f"device: got {kind} with {process.world_size} ranks, expected cpu or cuda; use one of "
            "these, or a single rank"
        )
    if (index := gpu_index(process)) >= (count := torch.cuda.device_count()):
        raise ConfigError(
            f"ranks: got {process.local_world_size} on a machine of {count} GPUs, expected one "
            "each; start fewer ranks there, or use --device cpu"
        )
    torch.cuda.set_device(index)


def with_strategy(
    config: RunConfig, process: ProcessInfo, *, log: Callable[[str], None]
) -> RunConfig:
    """Resolve the strategy of a run on several ranks; one process has none.

    "auto" is DDP where the state and one image fit into the memory of a rank, or where FSDP2
    cannot train the run; else FSDP2, with a note.

    Raises:
        ConfigError: if FSDP2 is asked for and cannot train the run.
    """
    if process.world_size == 1 or config.strategy == "ddp":
        return config
    if config.strategy == "fsdp":
        if reason := why_not_sharded(config):
            raise ConfigError(reason)
        return config
    machine = this_machine(config.device)._replace(ranks=process.world_size)
    if machine.device == "cpu":
        machine = machine._replace(memory_bytes=machine.memory_bytes / process.local_world_size)
    whole = dataclasses.replace(config, strategy="ddp")
    estimate = Estimate.of_run(config, machine, config.batch)
    if estimate.strategy == "ddp":
        return whole
    state = estimate._replace(config=whole).state_bytes
    need, memory = state / GiB, machine.memory_bytes / GiB
    log(
        f"strategy: fsdp, since a state of {need:.3g} GiB and an image do not fit into the "
        f"{memory:.3g} GiB of a rank; {process.world_size} ranks divide it"
    )
    return dataclasses.replace(config, strategy="fsdp")
