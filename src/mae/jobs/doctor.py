"""Check the machine: libraries, device, threads, image decoders and disk (mae doctor)."""

from __future__ import annotations

import io
import os
import shutil
import tempfile
from collections.abc import Callable
from functools import partial
from importlib import import_module, metadata
from pathlib import Path
from typing import NamedTuple

from mae.errors import INSTALL

LIBRARIES = {name: name for name in "torch numpy pillow simplejpeg safetensors rich timm".split()}
LIBRARIES |= {"pillow": "PIL", "timm": ""}
"""Import name by distribution name; timm is not imported because that takes seconds."""
FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF")
ALLOCATORS = ("jemalloc", "tcmalloc", "mimalloc")
LEAST_FREE_BYTES = 2 * 2**30
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

    A missing library fails its own check and every check that needs it.
    """
    return [
        *(_try(name, partial(_library, name), todo=ANEW) for name in LIBRARIES),
        _try("device", _device, todo="--device cpu works without it; see pytorch.org for others"),
        _try("threads", _threads, todo=ANEW),
        _allocator(),
        *(_try(f"reads {name}", partial(_decoder, name), todo=ANEW) for name in FORMATS),
        _try("disk", partial(_disk, folder), todo="make room, or work in a local folder of yours"),
    ]


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

    from mae.planning.hardware import cores

    threads, allowed, advice = torch.get_num_threads(), cores(), ""
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
