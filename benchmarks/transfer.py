"""Segmentation with few masks: MAE against supervised pre-training and no pre-training.

`python -m benchmarks.transfer OUT` draws images of textured shapes on textures, pre-trains an
encoder without labels, another with as many FLOPs by labels of the larger shape (disc or box, of
waves or of dots: part of what the masks ask), and trains segmenters with a linear head on a few
masks from both and from scratch, for three seeds. A repeated call resumes; the table is printed and
written to OUT/transfer.md. Supervised pre-training sees four fifths of the images, since a fifth is
held out.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import stats

from mae.atomic import write_atomic, write_json_atomic
from mae.config.dense import HeadConfig
from mae.config.objective import ObjectiveConfig
from mae.config.run import AugmentConfig, FinetuneConfig, OptimConfig, PretrainConfig
from mae.config.segment import SegmentConfig
from mae.config.sizes import model_config
from mae.jobs.finetune import finetune
from mae.jobs.pretrain import pretrain
from mae.jobs.segment_train import segment_train
from mae.model.costs import encoder_flops, step_flops
from mae.recipes.segmenting import SEGMENT_FOLDER
from mae.report.tables import align

CLASSES = ("ground", "steep", "falling", "rising", "dotted")
LABELS = ("disc of waves", "box of waves", "disc of dots", "box of dots")
"""Of images of pre-training."""
DOTTED = 4
STARTS = ("scratch", "supervised", "mae")
WAVE = 6.0  # pixels


@dataclass(frozen=True, kw_only=True)
class Size:
    """How much is drawn and trained."""

    edge: int = 64
    pool: int = 2000
    """Images of pre-training."""
    masks: int = 64
    """Images with masks, of which fractions are used."""
    fractions: tuple[str, ...] = ("25%", "100%")
    tests: int = 200
    width: int = 96
    depth: int = 4
    steps: int = 2000
    """Of MAE; supervised pre-training has as many FLOPs."""
    segment_steps: int = 1000
    seeds: int = 3


TINY = Size(edge=32, pool=16, masks=4, fractions=("100%",), tests=2, width=24, depth=2, steps=2,
            segment_steps=2, seeds=2)  # fmt: skip


def texture(kind: int, edge: int, random: np.random.Generator) -> NDArray[np.float32]:
    """Draw the texture of a class, edge edge, about 0 with a spread of 1; classes share colours."""
    y, x = np.mgrid[:edge, :edge].astype(np.float32)
    phase, angle = random.uniform(0, 2 * np.pi, 2), np.pi * (kind - 1) / 3 + random.normal(0, 0.08)
    if kind == 0:  # waves of any direction, each as long as those of the classes
        angles = random.uniform(0, np.pi, 4)
        waves = [np.sin(2 * np.pi * (np.cos(a) * x + np.sin(a) * y) / WAVE + phase[0] + 9 * a)
                 for a in angles]  # fmt: skip
        return sum(waves) / np.sqrt(2)
    if kind == DOTTED:
        grid = np.sin(2 * np.pi * x / WAVE + phase[0]) * np.sin(2 * np.pi * y / WAVE + phase[1])
        return 2 * grid
    return np.sqrt(2) * np.sin(
        2 * np.pi * (np.cos(angle) * x + np.sin(angle) * y) / WAVE + phase[0]
    )


def composed(
    edge: int, random: np.random.Generator
) -> tuple[NDArray[np.uint8], NDArray[np.uint8], int]:
    """Draw an image edge edge 3 of two shapes, its mask, and its place in `LABELS`."""
    y, x = np.mgrid[:edge, :edge] / edge
    boxes = set[int]()
    mask = np.zeros((edge, edge), dtype=np.uint8)
    for kind in random.permutation(np.arange(1, len(CLASSES)))[:2]:
        cy, cx, radius = (
            random.uniform(0.2, 0.8),
            random.uniform(0.2, 0.8),
            random.uniform(0.15, 0.32),
        )
        turn = random.uniform(0, np.pi)
        u = np.cos(turn) * (x - cx) + np.sin(turn) * (y - cy)
        v = np.cos(turn) * (y - cy) - np.sin(turn) * (x - cx)
        disc = u**2 + v**2 < radius**2
        box = np.maximum(np.abs(u), np.abs(v) * random.uniform(1, 1.6)) < radius * 0.9
        is_box = random.random() < 0.5
        mask[box if is_box else disc] = kind
        boxes |= {int(kind)} if is_box else set()
    image = np.empty((edge, edge, 3), dtype=np.float32)
    for kind in np.unique(mask).tolist():
        area, drawn = mask == kind, texture(kind, edge, random)
        base, strength = random.uniform(90, 165, 3), random.uniform(12, 30, 3)
        image[area] = (base + strength * drawn[..., None])[area]
    image += random.normal(0, 10, image.shape)
    larger = 1 + int(np.bincount(mask.ravel(), minlength=len(CLASSES))[1:].argmax())
    label = 2 * (larger == DOTTED) + (larger in boxes)
    return image.clip(0, 255).astype(np.uint8), mask, label


def write_images(root: Path, size: Size) -> None:
    """Write pool/CLASS, and few/train and few/val with masks, once."""
    if (root / "done").exists():
        return
    for stream, (part, count) in enumerate(
        (("pool", size.pool), ("few/train", size.masks), ("few/val", size.tests))
    ):
        random = np.random.default_rng((11, stream))
        for i in range(count):
            pixels, mask, label = composed(size.edge, random)
            folder = root / part / (LABELS[label] if part == "pool" else "images")
            for name, image in ((folder, pixels), (root / part / "masks", mask)):
                if part != "pool" or name == folder:
                    name.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(image).save(name / f"{i:05}.png")
    write_atomic(root / "few" / "classes.txt", ("\n".join(CLASSES) + "\n").encode())
    write_atomic(root / "done", b"")


def mae_config(size: Size, *, seed: int) -> PretrainConfig:
    """Return the pre-training without labels."""
    model = model_config(
        "vit-ti/8", image_size=size.edge, width=size.width, depth=size.depth, num_heads=3,
        decoder_width=64, decoder_depth=2, decoder_heads=2,
    )  # fmt: skip
    return PretrainConfig(
        model=model,
        objective=ObjectiveConfig(target_eps=1e-3),
        steps=size.steps,
        batch=64 if size.pool > 64 else 8,
        optim=OptimConfig(name="muon", lr=0.012, warmup_epochs=3),
        augment=AugmentConfig(crop_scale=(0.3, 1.0), flip=0.0),
        seed=seed,
        threads=1,
        held_out=0.0,
        device="cpu",
    )


def supervised_config(config: PretrainConfig) -> FinetuneConfig:
    """Return the pre-training by labels, of as many FLOPs and the same crops."""
    assert config.steps is not None
    flops = config.steps * step_flops(config.model, config.objective)
    return FinetuneConfig(
        model=config.model,
        steps=max(1, round(flops / (3 * encoder_flops(config.model)))),
        batch=config.batch,
        optim=OptimConfig(lr=4e-3, warmup_epochs=3, betas=(0.9, 0.999)),
        augment=config.augment,
        drop_path=0.1,
        seed=config.seed,
        threads=1,
        device="cpu",
    )


def segment_config(config: PretrainConfig, size: Size, *, scratch: bool) -> SegmentConfig:
    """Return the training on masks, the same for every start."""
    return replace(
        SEGMENT_FOLDER,
        follow_weights=not scratch,
        model=config.model if scratch else SEGMENT_FOLDER.model,
        steps=size.segment_steps,
        # The peak rate of finetune-folder for small networks; a short run learnt faster at it.
        optim=replace(SEGMENT_FOLDER.optim, lr=2e-3 * 256 / SEGMENT_FOLDER.batch),
        head=HeadConfig(kind="linear", norm="group", auxiliary_channels=0),
        scale_range=(0.75, 1.5),
        # A flip would turn falling waves into rising ones.
        augment=AugmentConfig(crop_scale=(1.0, 1.0), flip=0.0),
        layer_decay=1.0 if scratch else SEGMENT_FOLDER.layer_decay,
        micro_batch=None,
        seed=config.seed,
        threads=1,
        device="cpu",
    )


def scores(out: Path, size: Size) -> Iterator[tuple[str, str, int, float]]:
    """Yield start, fraction of the masks, seed and mIoU; finished runs are read."""
    write_images(out / "data", size)
    pool, few = out / "data" / "pool", out / "data" / "few"
    for seed in range(size.seeds):
        config = mae_config(size, seed=seed)
        for start in STARTS:
            folder = out / f"seed-{seed}"
            weights = None
            if start == "mae":
                weights = pretrain(config, data=pool, out=folder / "mae").path
            elif start == "supervised":
                own = supervised_config(config)
                weights = finetune(own, data=pool, out=folder / "supervised").path
            for fraction in size.fractions:
                found = segment_train(
                    segment_config(config, size, scratch=weights is None),
                    data=few, weights=weights, labels=fraction,
                    out=folder / f"{start}-{fraction.rstrip('%')}",
                )  # fmt: skip
                yield start, fraction, seed, found.scores.miou


def table(found: Sequence[tuple[str, str, int, float]], size: Size) -> str:
    """Lay out means with their 95 % intervals by Student's t over the seeds, and MAE's gains."""
    by = {(start, part, seed): score for start, part, seed, score in found}
    rows = [("masks", *STARTS, "mae - supervised", "mae - scratch")]
    for part in size.fractions:
        values = {s: np.array([by[s, part, i] for i in range(size.seeds)]) for s in STARTS}
        gains = (values["mae"] - values[other] for other in ("supervised", "scratch"))
        count = max(1, round(size.masks * float(part.rstrip("%")) / 100))
        rows.append((f"{count}", *map(interval, (*values.values(), *gains))))
    return align(rows)


def interval(values: NDArray[np.float64]) -> str:
    """Return the mean in % and its 95 % interval by Student's t over the seeds."""
    half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return f"{100 * values.mean():.1f} ± {100 * half:.1f}"


def main(words: Sequence[str] | None = None) -> None:
    """Run what is missing, and print the table of mIoU in %."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--tiny", action="store_true", help="a few steps, to see that it runs")
    asked = parser.parse_args(words)
    size = TINY if asked.tiny else Size()
    found = [*scores(asked.out, size)]
    text = table(found, size)
    write_json_atomic(asked.out / "transfer.json", [list(row) for row in found])
    write_atomic(asked.out / "transfer.md", f"```\n{text}\n```\n".encode())
    print(text)


if __name__ == "__main__":
    main()
