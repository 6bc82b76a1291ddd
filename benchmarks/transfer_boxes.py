"""Detection with few images: MAE on the same images against random weights.

`python -m benchmarks.transfer_boxes OUT FOLDER` takes images with boxes that are divided into
train, val and test (see `mae.data.detection.layout`); without FOLDER it draws them, 128 x 128 with
two textured shapes each. It pre-trains ViT-Ti/16 at 256 pixels (drawn: at 128) on the
training images without their boxes, trains detectors from it and from random weights on the same
schedule, for three seeds, and scores them on the test images. A repeated call resumes; the table is
printed and written to OUT/boxes.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.transfer import CLASSES, composed, interval
from mae.atomic import write_atomic, write_json_atomic
from mae.config.detect import DetectConfig
from mae.config.objective import ObjectiveConfig
from mae.config.run import AugmentConfig, OptimConfig, PretrainConfig
from mae.config.sizes import model_config
from mae.data.detection.check import check
from mae.data.detection.layout import find_boxed
from mae.data.segmentation.coco import run_lengths_of
from mae.jobs.detect_evaluate import detect_evaluate
from mae.jobs.detect_train import detect_train
from mae.jobs.pretrain import pretrain
from mae.progress import Progress
from mae.recipes.detecting import DETECT_FOLDER, ON_CPU
from mae.report.tables import align

STARTS = ("random", "mae")
SCORES = ("ap", "ap50", "ap75")
PEAK_RATE = 2e-4
"""Of detectors; of 2e-4, 5e-4 and 1e-3 the best from random weights on the validation images."""


@dataclass(frozen=True, kw_only=True)
class Size:
    """How much is trained."""

    edge: int = 256
    model: str = "vit-ti/16"
    steps: int = 300
    """Of pre-training, 64 crops each."""
    batch: int = 64
    detect_steps: int = 1500
    detect_batch: int = 2
    seeds: int = 3
    flip: float = 0.5
    """Fraction of images that are mirrored."""


# A mirrored wave that rises is one that falls, another class.
DRAWN = Size(edge=128, flip=0)
DRAWN_COUNTS = {"train": 200, "val": 50, "test": 100}
TINY = Size(edge=64, steps=2, batch=4, detect_steps=2, detect_batch=4, seeds=2)


def write_drawn(root: Path, edge: int, counts: Mapping[str, int] = DRAWN_COUNTS) -> None:
    """Write images with boxes and masks of their shapes in COCO's form, once."""
    for stream, (split, count) in enumerate(counts.items()):
        if (file := root / f"{split}.json").exists():
            continue
        random, images, objects = np.random.default_rng((12, stream)), [], []
        (root / "images").mkdir(parents=True, exist_ok=True)
        for i in range(count):
            pixels, classes, _ = composed(edge, random)
            own = {"id": i, "file_name": f"{split}-{i:03}.png", "height": edge, "width": edge}
            Image.fromarray(pixels).save(root / "images" / own["file_name"])
            images.append(own)
            for kind in np.unique(classes[classes > 0]).tolist():
                mask = classes == kind
                (y0, y1), (x0, x1) = (np.flatnonzero(mask.any(axis))[[0, -1]] for axis in (1, 0))
                objects.append({
                    "id": len(objects), "image_id": i, "category_id": kind, "iscrowd": 0,
                    "area": int(mask.sum()),
                    "bbox": [int(v) for v in (x0, y0, x1 + 1 - x0, y1 + 1 - y0)],
                    "segmentation": run_lengths_of(mask),
                })  # fmt: skip
        names = [{"id": kind, "name": name} for kind, name in enumerate(CLASSES) if kind]
        coco = {"images": images, "annotations": objects, "categories": names}
        write_json_atomic(file, coco)


def mae_config(size: Size, *, seed: int) -> PretrainConfig:
    """Return the pre-training, with the optimiser of the recipe folder for few images."""
    model = model_config(
        size.model, image_size=size.edge, decoder_width=128, decoder_depth=2, decoder_heads=4
    )
    return PretrainConfig(
        model=model,
        objective=ObjectiveConfig(target_eps=1e-3),
        steps=size.steps,
        batch=size.batch,
        optim=OptimConfig(name="muon", lr=0.012, warmup_epochs=10),
        augment=AugmentConfig(crop_scale=(0.2, 1.0), flip=size.flip),
        seed=seed,
        threads=1,
        held_out=0.0,
        device="cpu",
    )


def detect_config(config: PretrainConfig, size: Size, *, random: bool) -> DetectConfig:
    """Return the training on boxes, the same for both starts."""
    return replace(
        DETECT_FOLDER,
        follow_weights=not random,
        model=config.model if random else DETECT_FOLDER.model,
        resize=None if random else config.model.image_size,
        steps=size.detect_steps,
        batch=size.detect_batch,
        micro_batch=None,
        optim=replace(DETECT_FOLDER.optim, lr=PEAK_RATE * 256 / size.detect_batch, warmup_epochs=1),
        scale_range=(0.8, 1.25),  # the magnification of a microscope is known
        augment=AugmentConfig(crop_scale=(1.0, 1.0), flip=size.flip),
        layer_decay=1.0,  # 0.7, as published, keeps an encoder of minutes as it is
        seed=config.seed,
        threads=1,
        device="cpu",
        **ON_CPU,
    )


def scores(out: Path, data: Path, size: Size, seeds: Sequence[int]) -> Iterator[list[object]]:
    """Yield start, seed, training seconds and scores; finished runs are read."""
    part = find_boxed(data).splits["train"]()
    with Progress() as progress:
        images = check([part], max_bad=0.1, progress=progress).source(part)
    for seed in seeds:
        config = mae_config(size, seed=seed)
        for start in STARTS:
            folder, weights, seconds = out / f"seed-{seed}", None, 0.0
            if start == "mae":
                before = pretrain(config, data=images, out=folder / "mae")
                weights, seconds = before.path, before.metrics["seconds"]
            own = detect_config(config, size, random=weights is None)
            run = detect_train(own, data=data, weights=weights, out=folder / start / "detector")
            page = folder / start / "test.html"
            found = detect_evaluate(run.path, data=data, split="test", out=page).scores
            seconds += run.metrics["seconds"]
            yield [start, seed, seconds, *(getattr(found.boxes, name) for name in SCORES)]


def table(found: Sequence[Sequence[object]]) -> str:
    """Lay out means with their 95 % intervals by Student's t over the seeds, and MAE's gain."""
    by = {start: np.array([row[2:] for row in found if row[0] == start]) for start in STARTS}
    rows = [("", "minutes", *SCORES)]
    rows += [
        (start, f"{values[:, 0].mean() / 60:.1f}", *map(interval, values[:, 1:].T))
        for start, values in by.items()
    ]
    gain = by["mae"][:, 1:] - by["random"][:, 1:]
    return align([*rows, ("mae - random", "", *map(interval, gain.T))])


def main(words: Sequence[str] | None = None) -> None:
    """Run what is missing, and print the table of average precision in %."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--tiny", action="store_true", help="a few steps, to see that it runs")
    asked = parser.parse_args(words)
    data, size = asked.data, Size()
    if data is None:
        data, size = asked.out / "drawn", DRAWN
        write_drawn(data, size.edge)
    found = [*scores(asked.out, data, TINY if asked.tiny else size, asked.seeds)]
    text = table(found)
    write_json_atomic(asked.out / "boxes.json", found)
    write_atomic(asked.out / "boxes.md", f"```\n{text}\n```\n".encode())
    print(text)


if __name__ == "__main__":
    main()
