"""Check the machine and how ranks work together on it (mae doctor)."""

from __future__ import annotations

import hashlib
import io
import os
import secrets
import shutil
import socket
import tempfile
import time
from collections.abc import Callable
from functools import partial
from importlib import import_module, metadata
from pathlib import Path
from typing import NamedTuple

from mae.errors import INSTALL, MaeError
from mae.parallel.processes import (
    Communicator,
    is_slurm_task,
    open_communicator,
    require_agreement,
    this_process,
)

LIBRARIES = {name: name for name in "torch numpy pillow simplejpeg safetensors rich timm".split()}
LIBRARIES |= {"pillow": "PIL", "timm": ""}
"""Import name by distribution name; timm is not imported because that takes seconds."""
FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF")
ALLOCATORS = ("jemalloc", "tcmalloc", "mimalloc")
LEAST_FREE_BYTES = 2 * 2**30
SHARED_MEMORY = Path("/dev/shm")
LEAST_SHARED_BYTES = 2**29
REDUCED_BYTES = 2**24
MOST_CLOCK_SECONDS = 2.0
RANKS_WAIT_S = 60.0
ANEW = f"reinstall it: {INSTALL}"


class Check(NamedTuple):
    """Result of one check."""

    name: str
    ok: bool
    found: str
    """What was found; for a failed check, the problem and its remedy."""
    advice: str = ""
    """A setting that would make runs faster."""

    def row(self) -> tuple[str, str, str]:
        """Return the row of a table."""
        state = "advice" if self.advice else "ok"
        found = f"{self.found}; {self.advice}" if self.advice else self.found
        return self.name, state if self.ok else "PROBLEM", found


def doctor(folder: Path = Path()) -> list[Check]:
    """Check what a run needs: libraries, device, decoders, and the disk of a folder.

    A missing library fails its own check and every check that needs it. Several ranks also check
    what they need of each other; rank 0 alone checks the machine.
    """
    if this_process().world_size == 1:
        return _machine_checks(folder)
    with open_communicator(timeout_s=RANKS_WAIT_S) as ranks:
        checks = _machine_checks(folder) if ranks.is_main_process else []
        return [*checks, *_rank_checks(ranks, folder)]


def _machine_checks(folder: Path) -> list[Check]:
    return [
        *(_try(name, partial(_library, name), todo=ANEW) for name in LIBRARIES),
        _try("device", _device, todo="--device cpu works without it; see pytorch.org for others"),
        _try("threads", _threads, todo=ANEW),
        _allocator(),
        *(_try(f"reads {name}", partial(_decoder, name), todo=ANEW) for name in FORMATS),
        _try("disk", partial(_disk, folder), todo="make room, or work in a local folder of yours"),
        *(_shared_memory(folder) for folder in [SHARED_MEMORY] if folder.is_dir()),
    ]


def _rank_checks(ranks: Communicator, folder: Path) -> list[Check]:
    """Check that ranks compute, save and load together; stop at the first failure.

    Each check takes part in the same collectives on every rank, whatever it finds, and judges
    what all have gathered.
    """
    network = "name the network that joins them by GLOO_SOCKET_IFNAME (NCCL_SOCKET_IFNAME)"
    attempts: list[tuple[str, Callable[[], str], str]] = [
        ("versions", partial(_versions, ranks), "install the same versions for every rank"),
        ("ranks", partial(_ranks, ranks), "start as many as there are GPUs, or use --device cpu"),
        ("all-reduce", partial(_all_reduce, ranks), network),
        ("broadcast", partial(_broadcast, ranks), network),
        ("checkpoint", partial(_checkpoint, ranks, folder), "work in a folder that all ranks see"),
        ("clocks", partial(_clocks, ranks), "set the clocks of all machines by NTP"),
    ]
    checks = list[Check]()
    for name, attempt, todo in attempts:
        checks.append(_try(name, attempt, todo=todo))
        if not checks[-1].ok:
            break
    return checks


def _try(name: str, attempt: Callable[[], str | Check], *, todo: str) -> Check:
    try:
        found = attempt()
        return found if isinstance(found, Check) else Check(name, ok=True, found=found)
    except ImportError as error:
        return Check(name, ok=False, found=f"{error}".splitlines()[0] + f"; {ANEW}")
    except Exception as error:  # any failure is the result of the check
        reason = f"{error or type(error).__name__}".splitlines()[0]
        return Check(name, ok=False, found=f"{reason}; {todo}")


def _library(name: str) -> str:
    if module := LIBRARIES[name]:
        import_module(module)
    return metadata.version(name)


def _device() -> str:
    import torch

    from mae.planning.hardware import choose_device

    device = choose_device("auto")
    (torch.ones(8, 8, device=device) @ torch.ones(8, 8, device=device)).sum().item()
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _threads() -> Check:
    """Compare torch's number of threads with the cores available to this process."""
    import torch

    from mae.planning.hardware import cores_per_rank

    allowed = cores_per_rank(this_process())
    threads, advice = torch.get_num_threads(), ""
    if threads > allowed:  # threads without a core of their own make the others wait
        advice = f"more threads than cores: set OMP_NUM_THREADS={allowed} or --threads {allowed}"
    elif threads < allowed and (asked := os.environ.get("OMP_NUM_THREADS")):
        advice = f"OMP_NUM_THREADS={asked} leaves cores idle: unset it, or use --threads {allowed}"
    return Check("threads", ok=True, found=f"{threads} for {allowed} cores", advice=advice)


def _allocator() -> Check:
    """Report the memory allocator and the setting of transparent huge pages.

    It gives no advice: the time a step spends on new pages is too short to measure, and neither
    huge pages nor keeping freed memory makes a step faster (docs/performance.md).
    """
    preloaded = os.environ.get("LD_PRELOAD", "")
    known = next((name for name in ALLOCATORS if name in preloaded), "the system's")
    return Check("allocator", ok=True, found=f"{known}; huge pages: {huge_pages()}")


def huge_pages(setting: Path = Path("/sys/kernel/mm/transparent_hugepage/enabled")) -> str:
    """Return when the system uses 2 MiB pages: always, on request (madvise), or never."""
    text = setting.read_text() if setting.exists() else ""
    return next((mode for mode in ("always", "madvise") if f"[{mode}]" in text), "never")


def _decoder(file_format: str) -> str:
    import numpy as np
    from PIL import Image

    from mae.data.decoding.decode import PixelKind, decode

    image = np.full((16, 24, 3), (200, 100, 50), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(image).save(file, file_format)
    pixels = decode(file.getvalue(), kind=PixelKind("uint8", 3))
    if pixels.shape != image.shape or np.abs(pixels.astype(int) - image).max() > 4:
        raise ValueError(f"a {file_format} image came back changed")
    return "written and read back"


def _disk(folder: Path) -> str:
    from mae.atomic import write_atomic
    from mae.runs.signals import RunLock

    with tempfile.TemporaryDirectory(dir=folder, prefix=".mae-doctor-") as name:
        write_atomic(Path(name, "file"), b"x")
        with RunLock(Path(name, "lock")):
            free = shutil.disk_usage(folder).free
    if free < LEAST_FREE_BYTES:
        raise ValueError(f"{free / 2**30:.1f} GiB free, expected {LEAST_FREE_BYTES / 2**30:.0f}")
    return f"{free / 2**30:.0f} GiB free in {folder.absolute()}; writes and locks files"


def _shared_memory(folder: Path) -> Check:
    free = shutil.disk_usage(folder).free
    advice = ""
    if free < LEAST_SHARED_BYTES:
        advice = "readers put batches there: docker run --shm-size=8g, or --workers 0"
    return Check("shared memory", ok=True, found=f"{_gib(free)} free in {folder}", advice=advice)


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"


def _versions(ranks: Communicator) -> str:
    require_agreement(ranks, {f"version of {name}": _version(name) for name in LIBRARIES})
    return f"the same on {ranks.process.world_size} ranks"


def _version(name: str) -> str:
    """Return the version of a library; if one rank alone failed here, the others would wait."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "none"


def _ranks(ranks: Communicator) -> str:
    """Return hosts and backend; every rank that computes on a GPU has one of its own."""
    import torch

    gpus, here = torch.cuda.device_count(), ranks.process.local_world_size
    own = gpus == 1 and is_slurm_task()  # SLURM may show each task its own GPU alone
    found = ranks.all_gather((socket.gethostname(), own or here <= gpus or not gpus, here, gpus))
    for host, is_enough, asked, count in found:
        if not is_enough:
            raise ValueError(f"{asked} ranks on {host}, which has {count} GPUs")
    hosts = sorted({host for host, *_ in found})
    backend = f"gloo of torch {torch.__version__}"
    if gpus:
        version = torch.cuda.nccl.version()  # type: ignore[no-untyped-call]
        backend = f"nccl {'.'.join(map(str, version))}"
    return f"{len(found)} on {', '.join(hosts)}; {backend}"


def _all_reduce(ranks: Communicator) -> str:
    import torch

    from mae.planning.hardware import gpu_index

    count = ranks.process.world_size
    device = f"cuda:{gpu_index(ranks.process)}" if torch.cuda.is_available() else "cpu"
    seconds = list[float]()
    for _ in range(3):  # the first one opens connections
        values = torch.full((REDUCED_BYTES // 4,), ranks.process.rank + 1.0, device=device)
        ranks.all_gather(None)
        started = time.perf_counter()
        ranks.all_reduce(values)
        total = values[[0, -1]].tolist()
        seconds.append(time.perf_counter() - started)
    expected = count * (count + 1) / 2
    if any(each != [expected] * 2 for each in ranks.all_gather(total)):
        raise ValueError(f"got {total[0]:g} as the sum of 1 to {count}")
    return f"{REDUCED_BYTES / 2**20:.0f} MiB in {1000 * min(seconds):.1f} ms ({device[:4]})"


def _broadcast(ranks: Communicator) -> str:
    sent = ranks.on_main(lambda: os.urandom(2**20))
    digests = ranks.all_gather(hashlib.sha256(sent).hexdigest())
    if len(set(digests)) > 1:
        raise ValueError("ranks got other bytes than rank 0 sent")
    return "1 MiB from rank 0 to all"


def _checkpoint(ranks: Communicator, folder: Path) -> str:
    """Save a small state on rank 0 and load it on every rank."""
    import torch

    from mae.runs.checkpoint import load_checkpoint, save_checkpoint
    from mae.runs.state import TrainState

    model = torch.nn.Linear(256, 256)
    state = TrainState(model, torch.optim.AdamW(model.parameters()), step=1)
    path = folder / ranks.on_main(lambda: f".mae-doctor-{secrets.token_hex(4)}")
    started = time.perf_counter()
    ranks.on_main(lambda: save_checkpoint(path, state, extra={}, keep=2).name)
    try:
        is_found = load_checkpoint(path, state, log=lambda _: None) is not None
        problem = "" if is_found else f"rank {ranks.process.rank} does not see what rank 0 saved"
    except (MaeError, OSError) as error:
        problem = f"rank {ranks.process.rank}: {error}"
    everyone = ranks.all_gather((problem, model.weight.sum().item()))
    seconds = time.perf_counter() - started
    if ranks.is_main_process:
        shutil.rmtree(path, ignore_errors=True)
    if problems := [problem for problem, _ in everyone if problem]:
        raise ValueError(problems[0])
    if len({weight for _, weight in everyone}) > 1:
        raise ValueError("ranks loaded other values than rank 0 saved")
    return f"saved by rank 0 and loaded by all in {1000 * seconds:.0f} ms"


def _clocks(ranks: Communicator) -> str:
    """Compare the clocks; what a gather takes is part of the difference, so the least counts."""
    differences = list[float]()
    for _ in range(5):
        ranks.all_gather(None)
        times = ranks.all_gather(time.time())
        differences.append(max(times) - min(times))
    if min(differences) > MOST_CLOCK_SECONDS:
        raise ValueError(f"the clocks of the ranks differ by {min(differences):.1f} s")
    return f"differ by at most {1000 * min(differences):.0f} ms"
