"""Read the record and log of a run directory, finished or not."""

from __future__ import annotations

import math
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

from mae.config.detect import DetectConfig
from mae.config.kinds import AnyRunConfig, config_type
from mae.config.run import FinetuneConfig, PretrainConfig
from mae.config.segment import SegmentConfig
from mae.config.serialize import from_dict
from mae.config.sizes import size_name
from mae.errors import ConfigError
from mae.report.figures import number
from mae.runs.directory import RunDir, read_record
from mae.runs.log import read_rows
from mae.train.meter import losses, running_mean


class RunFacts(NamedTuple):
    """Record, configuration and log of a run."""

    files: RunDir
    record: dict[str, Any]
    config: AnyRunConfig
    rows: list[dict[str, Any]]
    """Logged steps without the skipped ones."""

    @property
    def name(self) -> str:
        """Path of the run as given, since two runs may have folders of the same name."""
        return str(self.files.path)

    @property
    def kind(self) -> str:
        """Type of training."""
        kinds = {
            PretrainConfig: "Pre-training",
            FinetuneConfig: "Fine-tuning",
            SegmentConfig: "Segmentation",
            DetectConfig: "Detection",
        }
        return kinds[type(self.config)]

    @property
    def step(self) -> int:
        """Last logged step."""
        return int(self.rows[-1]["step"]) if self.rows else 0

    def curve(self, field: str) -> list[tuple[float, float]]:
        """Return (images seen, value) for each finite value; for the loss, its running mean.

        It is the same running mean that the progress line of the run shows.
        """
        batch = self.config.batch
        if field == "loss":
            found = losses(self.rows)
            means = (running_mean(found[: place + 1]) for place in range(len(found)))
            return [(step * batch, mean) for (step, _), mean in zip(found, means, strict=True)]
        return [
            (row["step"] * batch, row[field])
            for row in self.rows
            if row.get(field) is not None and math.isfinite(row[field])
        ]


def read_run(path: Path) -> RunFacts:
    """Read a run directory.

    Raises:
        ConfigError: if it is not a run, or its record cannot be read.
    """
    files, record = RunDir(path), read_record(path)
    if record is None:
        raise ConfigError(f"{path}: is not a run, it holds no run.json; name the folder of a run")
    fields, where, rows = record["config"], str(files.record), read_rows(files.log)
    return RunFacts(files, record, from_dict(config_type(fields), fields, where=where), rows)


def headline(run: RunFacts) -> dict[str, str]:
    """Return the key facts of a run as text, by name."""
    config, model, data = run.config, run.config.model, run.record["data"]
    H, W = model.image_size
    images, seconds = run.step * config.batch, sum(row.get("seconds", 0) for row in run.rows)
    curve = run.curve("loss")
    return {
        "recipe": str(run.record.get("recipe", "unknown")),
        "images": f"{data['count']:,} in {Path(str(data.get('path', 'memory'))).name}",
        "model": size_name(width=model.width, depth=model.depth, patch_size=model.patch_size),
        "input": f"{H} x {W} x {model.channels} {model.pixels.dtype}",
        "steps": f"{run.step:,} x {config.batch:,} images",
        "epochs": f"{images / config.trained_images(data['count']):.3g}",
        "training time": str(timedelta(seconds=round(seconds))),
        "images per second": number(images / seconds) if seconds else "not known yet",
        "loss": f"{curve[-1][1]:.4g}, mean over the last tenth of the steps"
        if curve
        else "not known yet",
    }
