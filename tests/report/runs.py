"""Run directories for tests, written as a training would have left them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from mae.config.run import OptimConfig, PretrainConfig
from mae.config.serialize import to_dict
from mae.report.reconstruction import save_progress_image
from tests.model.tiny import tiny_config, tiny_model


def make_run(
    path: Path,
    *,
    lr: float = 0.01,
    rows: int = 5,
    images: int = 2,
    **record: Any,
) -> Path:
    """Write a run of 40 steps a row, of which `rows` are logged and `images` were drawn."""
    path.mkdir(parents=True)
    config = PretrainConfig(model=tiny_config(), epochs=2, batch=8, optim=OptimConfig(lr=lr))
    full = {
        "recipe": "custom",
        "config": to_dict(config),
        "command": ["mae", "pretrain", "--data", "my images", "--out", str(path)],
        "data": {"path": "my images", "count": 100, "fingerprint": "f", "kind": {}},
        "versions": {"python": "3.11.0", "torch": "2.14.1"},
        "git": {"commit": "0123456789abcdef", "changed": True},
        "threads": 2,
        "num_steps": 200,
        "finished": True,
    }
    (path / "run.json").write_text(json.dumps(full | record))
    (path / "log.jsonl").write_text("".join(f"{json.dumps(row(i))}\n" for i in range(1, rows + 1)))
    draw_images(path, count=images)
    return path


def row(number: int, **fields: Any) -> dict[str, Any]:
    given = {"step": 40 * number, "loss": 1 / number, "lr": 0.001 * number, "seconds": 4.0}
    return given | fields


def draw_images(path: Path, *, count: int) -> None:
    generator = torch.Generator().manual_seed(0)
    model = tiny_model(generator)
    images = torch.randint(256, (2, 3, 12, 20), generator=generator, dtype=torch.uint8)
    noise = torch.rand(2, 15, generator=generator)
    for number in range(count):
        save_progress_image(model, images, noise, path / f"images/step-{40 * number:08d}.png")


def results() -> dict[str, Any]:
    """Give results.json in the three forms that evaluations write."""

    def score(mean: float, *, spread: float = 0.0, behind: bool = False) -> dict[str, Any]:
        return {"mean": mean, "spread": spread, "behind": behind}

    return {
        "evidence": {
            "about": "accuracy in % on 10 test images",
            "columns": ["k-NN", "10 a class"],
            "rows": [
                {"name": "raw pixels", "scores": [score(0.831), score(0.7, spread=0.012)]},
                {"name": "trained", "scores": [score(0.828, behind=True), score(0.75)]},
            ],
        },
        "hidden_psnr": {
            "about": "PSNR in dB over 99 hidden values; given to all",
            "rows": [{"name": "model", "psnr": 21.36}, {"name": "mean colour", "psnr": 15.1}],
        },
        "few_labels": {"about": "after training on 10 labels", "scratch": score(0.61)},
        "shortfalls": ["k-NN: trained 82.8, not ahead of random 83.0"],
    }
