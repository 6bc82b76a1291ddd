"""Write small files with version 0.1.0: runs, weights, a pack (see README.md beside the files).

Run with the package of the commit to keep: `python make_older.py OUT`.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
from PIL import Image

import mae

COUNT, H, W = 36, 16, 24


def images() -> np.ndarray:
    """Return 36 x 16 x 24 x 3 uint8: noise over a gradient by class."""
    rng = np.random.default_rng(7)
    noise = rng.integers(0, 120, (COUNT, H, W, 3))
    slope = (
        np.linspace(0, 130, W)[None, None, :, None]
        * (np.arange(COUNT) % 3 / 2)[:, None, None, None]
    )
    return (noise + slope).astype(np.uint8)


def labelled(folder: Path) -> None:
    """Write the images as PNG files, a folder per class."""
    for number, image in enumerate(images()):
        path = folder / "abc"[number % 3] / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)


def pretrain(out: Path) -> None:
    """Pre-train 12 steps."""
    config = mae.PretrainConfig(
        model=mae.ModelConfig(
            image_size=(8, 12),
            patch_size=4,
            width=8,
            depth=2,
            num_heads=2,
            decoder_width=8,
            decoder_depth=1,
            decoder_heads=2,
            mask_ratio=0.5,
            target_eps=1e-5,
        ),
        steps=12,
        batch=9,
        save_every_steps=1,
        log_every_steps=1,
        threads=1,
        device="cpu",
        precision="float32",
        optim=mae.OptimConfig(lr=1e-3, muon="muon" in out.name),
    )
    mae.pretrain(config, data=images(), out=out, quiet=True, command=("mae", "pretrain"))


def finetune(out: Path, data: Path, weights: Path) -> None:
    """Fine-tune 8 steps."""
    config = mae.FinetuneConfig(
        follow_weights=True,
        steps=8,
        batch=6,
        save_every_steps=1,
        log_every_steps=1,
        threads=1,
        device="cpu",
        precision="float32",
        layer_decay=0.75,
        drop_path=0.1,
        ema=0.9,
        optim=mae.OptimConfig(lr=1e-3),
        mix=mae.MixConfig(mixup=0.8),
    )
    mae.finetune(
        config, data=data, weights=weights, out=out, quiet=True, command=("mae", "finetune")
    )


def stopped(out: Path, step: int, run, *args) -> None:
    """Run until a checkpoint of `step` exists, then stop by SIGTERM."""

    def stop() -> None:
        while not list((out / "checkpoints").glob(f"step-*{step}")):
            time.sleep(0.001)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop, daemon=True).start()
    try:
        run(out, *args)
    except mae.Stopped as error:
        print(error)
    else:
        sys.exit("not stopped in time")


def keep_small(run: Path, root: Path) -> None:
    """Remove what the tests do not read, and the folder that the run was made in."""
    for path in [*sorted((run / "checkpoints").glob("step-*"))[:-1], *(run / "pictures").glob("*")][
        :-1
    ]:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    for name in ("report.html", "lock"):
        (run / name).unlink(missing_ok=True)
    if "stopped" not in run.name:
        shutil.rmtree(run / "checkpoints")
    for record in (
        run / "run.json",
        run / "weights" / "config.json",
        run / "weights" / "README.md",
    ):
        if record.exists():
            record.write_text(record.read_text().replace(str(root), "ROOT"))


def main(root: Path) -> None:
    root.mkdir(parents=True)
    labelled(root / "labelled")
    command = [
        sys.executable,
        "-m",
        "mae",
        "data",
        "pack",
        str(root / "labelled"),
        str(root / "pack"),
    ]
    subprocess.run(command, check=True)
    (root / "pack" / "lock").unlink()
    shutil.rmtree(root / "labelled")
    for name in ("pretrain", "pretrain-muon"):
        pretrain(root / name)
        stopped(root / f"{name}-stopped", 5, pretrain)
    finetune(root / "finetune", root / "pack", root / "pretrain")
    stopped(root / "finetune-stopped", 3, finetune, root / "pack", root / "pretrain")
    for run in root.glob("*t*-*"), root.glob("pretrain"), root.glob("finetune"):
        for folder in run:
            keep_small(folder, root)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
