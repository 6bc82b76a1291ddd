"""The way of the data against the usual one, PIL and torchvision's transforms, on the same files.

`python -m benchmarks.data [FOLDER]` takes 64 JPEGs of FOLDER, or draws some of 500 x 375. Both
sides run in one process and thread, in turn, and what is compared is the processor's time: the
ratio pair by pair, with its spread. `--workers` compares two reader processes with one, by the
clock.
"""

from __future__ import annotations

import itertools
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib import metadata
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torchvision import transforms

from benchmarks.spread import Spread
from mae.config.model import IMAGENET_MEAN, IMAGENET_STD
from mae.config.run import AugmentConfig, PixelConfig
from mae.data.batching.batch import BatchPlan, training_batch
from mae.data.batching.loader import MADE_AHEAD, batches
from mae.data.decoding.decode import PixelKind
from mae.data.sources.pack import open_pack
from mae.data.sources.source import ArraySource, FolderSource, Source
from mae.jobs.data_pack import pack
from mae.model.normalize import normalize_pixels

IMAGES = 64  # of a side in a pair, each seen once
SMALL = 512  # images of 32 x 32
SIZE, SHORT = 224, 256
PAIRS = 9
KIND = PixelKind("uint8", 3)


def draw_images(folder: Path, count: int = IMAGES) -> None:
    """Draw JPEGs as large as ImageNet's are, 500 x 375 and some 110 kB: noise of many sizes."""
    rng = np.random.default_rng(0)
    for number in range(count):
        total = np.zeros((375, 500, 3))
        for cell, strength in ((125, 60), (31, 35), (8, 18), (2, 9), (1, 7)):
            shape = (-(-375 // cell), -(-500 // cell), 3)
            noise = rng.normal(128, 50, shape).clip(0, 255).astype(np.uint8)
            grown = Image.fromarray(noise).resize((500, 375), Image.Resampling.BICUBIC)
            total += (np.asarray(grown) - 128.0) * strength / 50
        image = Image.fromarray((total + 128).clip(0, 255).astype(np.uint8))
        image.save(folder / f"{number:03}.jpg", quality=95)


def shrunk(path: Path) -> Image.Image:
    """Give an image with a short side of 256 pixels."""
    with Image.open(path) as image:
        share = SHORT / min(image.size)
        size = tuple(round(side * share) for side in image.size)
        return image.convert("RGB").resize(size, Image.Resampling.BICUBIC)


def usual_transform(size: int) -> Callable[[Image.Image], torch.Tensor]:
    """Give what the published code does to an image."""
    how = transforms.InterpolationMode.BICUBIC
    return transforms.Compose(
        [
            transforms.RandomResizedCrop(size, scale=(0.2, 1.0), interpolation=how),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
        ]
    )


def usual_from_files(paths: Sequence[Path]) -> None:
    """Make a batch as the published code's loader does."""
    transform, made = usual_transform(SIZE), []
    for path in paths:
        with open(path, "rb") as file:
            made.append(transform(Image.open(file).convert("RGB")))
    torch.stack(made)


def usual_from_memory(images: NDArray[np.uint8]) -> None:
    """Make a batch of small images as torchvision's own data sets do."""
    transform = usual_transform(images.shape[1])
    torch.stack([transform(Image.fromarray(image)) for image in images])


def plan_of(source: Source, *, size: int = SIZE, batch: int | None = None) -> BatchPlan:
    """Give the plan of batches that show every image once."""
    return BatchPlan(
        source=source,
        kind=KIND,
        size=(size, size),
        grid=(size // 16, size // 16),
        augment=AugmentConfig(),
        batch=batch or len(source),
        seed=0,
    )


def ours(source: Source, *, size: int = SIZE, normalized: bool = False) -> Callable[[], None]:
    """Give a function that makes the next of our batches."""
    plan, numbers = plan_of(source, size=size), itertools.count()

    def run() -> None:
        batch = training_batch(plan, next(numbers))
        if normalized:
            normalize_pixels(batch.images, PixelConfig()).contiguous()

    return run


def cpu_seconds(run: Callable[[], object]) -> float:
    """Take the time that this process computes."""
    began = time.process_time()
    run()
    return time.process_time() - began


def compare(name: str, theirs: Callable[[], object], own: Callable[[], object], count: int) -> None:
    """Print the ratio of the times of two sides, and ours in images a second."""
    theirs(), own()
    pairs = [(cpu_seconds(theirs), cpu_seconds(own)) for _ in range(PAIRS)]
    ratio = Spread.of([a / b for a, b in pairs]).written()
    usual, rate = (count / statistics.median(side) for side in zip(*pairs, strict=True))
    print(f"{name:<52} {ratio:<22} {usual:7,.0f}  {rate:7,.0f}")


def one_core(paths: Sequence[Path], work: Path) -> None:
    """Compare the ways of storing images on one core."""
    again = work / "short-256"
    again.mkdir()
    for number, path in enumerate(paths):
        shrunk(path).save(again / f"{number:03}.jpg", quality=90)
    packed = work / "packed"
    pack(again, packed, quiet=True)
    pixels = np.stack([np.asarray(shrunk(path).resize((341, SHORT))) for path in paths])
    np.save(work / "raw.npy", pixels)
    raw = ArraySource(np.load(work / "raw.npy", mmap_mode="r"))
    small = np.random.default_rng(0).integers(0, 256, (SMALL, 32, 32, 3), dtype=np.uint8)
    originals, usual = FolderSource.of_files(paths), partial(usual_from_files, paths)
    print(f"{'':<52} times theirs over ours     theirs     ours, images/s of a core")
    compare("original JPEGs", usual, ours(originals), len(paths))
    compare("  normalised to float32 as well", usual, ours(originals, normalized=True), len(paths))
    compare("re-encoded, short side 256, quality 90", usual, ours(FolderSource(again)), len(paths))
    compare("  the same in a pack", usual, ours(open_pack(packed)), len(paths))
    compare("raw uint8, short side 256, memory-mapped", usual, ours(raw), len(paths))
    in_memory = partial(usual_from_memory, small)
    compare("32 x 32 in memory", in_memory, ours(ArraySource(small), size=32), SMALL)


def two_workers(paths: Sequence[Path]) -> None:
    """Compare two reader processes with one by the clock, both at work in turn."""
    plan = plan_of(FolderSource.of_files(paths), batch=32)
    feeds = {count: batches(plan, start=0, stop=10**6, workers=count) for count in (1, 2)}
    ratios = []
    for _ in range(PAIRS):
        one, two = (_seconds_of_batches(feed, count) for count, feed in feeds.items())
        ratios.append(one / two)
    print(f"two reader processes over one, by the clock: {Spread.of(ratios).written()}")


def _seconds_of_batches(feed: Iterator[object], workers: int) -> float:
    time.sleep(0.4)  # the other side still makes batches ahead, on a core that this one needs
    for _ in range(MADE_AHEAD * workers + 1):  # what was made while the other side was at work
        next(feed)
    began = time.perf_counter()
    for _ in range(12):
        next(feed)
    return time.perf_counter() - began


def main(words: Sequence[str]) -> None:
    """Run what was asked for and print it."""
    torch.set_num_threads(1)
    names = [word for word in words if not word.startswith("--")]
    versions = ", ".join(f"{n} {metadata.version(n)}" for n in ("torch", "torchvision", "pillow",
                                                                "simplejpeg"))  # fmt: skip
    print(f"{time.strftime('%Y-%m-%d')}, {os.cpu_count()} cores, one thread; {versions}")
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        folder = Path(names[0]) if names else work / "drawn"
        if not names:
            folder.mkdir()
            draw_images(folder)
        paths = sorted(folder.rglob("*.jpg"))[:IMAGES]
        size = statistics.mean(path.stat().st_size for path in paths)
        print(f"{len(paths)} JPEGs of {size / 1000:.0f} kB, batches of them all, {PAIRS} pairs")
        if "--workers" in words:
            two_workers(paths)
        else:
            one_core(paths, work)


if __name__ == "__main__":
    main(sys.argv[1:])
