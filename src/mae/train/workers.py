"""How many processes read the images of a run."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import torch

from mae.config.run import FitConfig
from mae.data.batching.batch import BatchPlan
from mae.data.batching.loader import MADE_AHEAD
from mae.data.batching.readers import why_no_readers
from mae.data.sources.source import ArraySource
from mae.parallel.processes import SINGLE_PROCESS, ProcessInfo
from mae.planning.hardware import cores_per_rank


def choose_workers(
    config: FitConfig,
    plan: BatchPlan,
    device: torch.device,
    *,
    log: Callable[[str], None],
    process: ProcessInfo = SINGLE_PROCESS.process,
) -> int:
    """Choose the number of reader processes: 0 where images are in memory or a CPU trains.

    Otherwise one per core, divided among the ranks of this machine, up to 16, while the
    prefetched batches take at most a quarter of the memory and half of the free shared memory. 0,
    with a note, where the calling script cannot start processes.
    """
    workers = config.workers
    if workers is None:
        if isinstance(plan.source, ArraySource) or device.type == "cpu":
            return 0
        ahead = MADE_AHEAD * plan.batch_bytes
        room = _room_for_batches() // process.local_world_size
        workers = min(16, cores_per_rank(process), max(1, int(room // ahead)))
    if workers and (reason := why_no_readers(plan.source)):
        log(reason)
        return 0
    return workers


def _room_for_batches() -> int:
    """Return the bytes available to prefetched batches."""
    room = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 4
    shared = Path("/dev/shm")  # shared memory on Linux; 64 MB in many containers
    return min(room, shutil.disk_usage(shared).free // 2) if shared.is_dir() else room
