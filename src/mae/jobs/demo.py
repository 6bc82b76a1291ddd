"""The demo: pre-train on Fashion-MNIST in minutes and evaluate the result."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from mae.atomic import write_json_atomic
from mae.config.run import PretrainConfig
from mae.config.serialize import from_dict
from mae.data.sampling.masks import mask_noise
from mae.data.sources.fashion_mnist import fashion_mnist
from mae.data.sources.open import BUILT_IN
from mae.evaluation.evidence import BEHIND, Score, evidence_table, shortfalls
from mae.evaluation.features import BATCH, LabelledImages
from mae.evaluation.few_shot import few_label_finetuning
from mae.evaluation.reconstruction import hidden_psnr
from mae.evaluation.split import labels_per_class
from mae.jobs.pretrain import pretrain
from mae.model.autoencoder import MaskedAutoencoder
from mae.model.create import create
from mae.planning.hardware import choose_device
from mae.progress import Progress
from mae.recipes.catalogue import DEMO
from mae.report.page import write_report
from mae.report.reconstruction import save_progress_image
from mae.runs.directory import RunDir, read_record
from mae.train.measure import count_steps
from mae.train.resolve import batch_plan, resolve
from mae.weights.load import open_model

MOST_MINUTES = 8.0
LABELS_PER_CLASS = 1000
STRIP = "reconstruction.png"
MASK_SEED = 0  # for the masks of the test images
FEW_LABELS = {
    "pretrained": "fine-tuning the trained encoder",
    "scratch": "fine-tuning the same network from scratch",
    "pixels": "logistic regression on raw pixels",
}


class DemoResult(NamedTuple):
    """Run directory of the demo and its results.json."""

    rundir: RunDir
    results: dict[str, Any]

    @property
    def exit_code(self) -> int:
        """1 if the model of the full demo falls short of a baseline it must beat, else 0."""
        return 1 if self.results["shortfalls"] else 0

    def values(self) -> dict[str, Any]:
        """Return the values that --json prints."""
        return {"run": self.rundir.path, "report": self.rundir.report} | self.results

    def rows(self) -> list[tuple[str, ...]]:
        """Return the rows of the tables and the suggested next commands."""
        evidence, few, psnr = (self.results[k] for k in ("evidence", "few_labels", "hidden_psnr"))
        here = self.rundir.path
        return [
            ("accuracy in %", *evidence["columns"], ""),
            *((row["name"], *_cells(row["scores"])) for row in evidence["rows"]),
            (f"  ({evidence['about']})",),
            ("",),
            *((text, *_cells([few[name]])) for name, text in FEW_LABELS.items()),
            (f"  ({few['about']})",),
            ("",),
            *((f"hidden patches, {r['name']}", f"{r['psnr']:.1f} dB") for r in psnr["rows"]),
            (f"  ({psnr['about']})",),
            ("",),
            *((f"not ahead: {line}",) for line in self.results["shortfalls"]),
            ("report", str(self.rundir.report)),
            ("drawing", str(here / STRIP)),
            ("next, on images of your own:",),
            ("  mae pretrain --data IMAGES",),
            (f"  mae reconstruct {here} IMAGE --out reconstruction.png",),
            (f"  mae embed {here} --data IMAGES --out features.npy",),
        ]


def demo(*, out: Path, minutes: float | None = None, quiet: bool = False) -> DemoResult:
    """Pre-train, probe, reconstruct and report; a repeated call resumes an interrupted demo.

    Args:
        out: run directory; a finished one is shown again.
        minutes: length of a shorter demo, which is not compared with the baselines.
        quiet: show no progress.
    """
    rundir = RunDir(out)
    record = read_record(out) if out.exists() else None
    with Progress(quiet=quiet) as progress:
        if record is not None:
            config = from_dict(PretrainConfig, record["config"], where=str(rundir.record))
        else:
            config = _config(minutes, log=progress.note)
        if record is None or not record.get("finished"):
            again = ("mae", "demo", "--out", str(out))
            pretrain(config, data=BUILT_IN, out=out, quiet=quiet, command=again, based_on="demo")
        if not rundir.results.exists():
            model = open_model(out).model.to(choose_device(config.device))
            results = _evaluate(model, config, strip=out / STRIP, log=progress.note)
            write_json_atomic(rundir.results, results)
            write_report(out)
    return DemoResult(rundir, json.loads(rundir.results.read_bytes()))


def _config(minutes: float | None, *, log: Callable[[str], None]) -> PretrainConfig:
    """Return the demo's recipe, shortened to the steps of `MOST_MINUTES` on this machine."""
    if minutes is not None:
        return replace(DEMO, minutes=minutes)
    source = fashion_mnist("train")
    resolved = resolve(DEMO, source)
    config, kind = resolved.config, resolved.kind
    model = create(config.model, objective=config.objective, seed=config.seed)
    plan = batch_plan(config, source, kind)
    wanted = count_steps(config, plan, model, log=log)
    possible = count_steps(replace(config, minutes=MOST_MINUTES), plan, model, log=log)
    if possible >= wanted:
        return DEMO
    log(f"this machine makes {possible:,} of {wanted:,} steps in {MOST_MINUTES:g} minutes")
    return replace(DEMO, steps=possible)


def _evaluate(
    model: MaskedAutoencoder, config: PretrainConfig, *, strip: Path, log: Callable[[str], None]
) -> dict[str, Any]:
    """Return the results and draw a test image of each class, rebuilt, to `strip`.

    Shortfalls are those of the full demo, not of one of some minutes.
    """
    source = fashion_mnist("train")
    assert source.labels is not None
    few = labels_per_class(source.labels, LABELS_PER_CLASS, seed=0)
    train, test = LabelledImages.of(source).only(few), LabelledImages.of(fashion_mnist("test"))
    table = evidence_table(model.encoder, train=train, test=test, init_seed=config.seed, log=log)
    log("fine-tuning on few labels ...")
    few_labels = few_label_finetuning(model.encoder, train=train, test=test)
    ids = np.arange(len(test.images), dtype=np.int64)
    noise = mask_noise(ids, config.objective, grid=config.model.grid, seed=MASK_SEED)
    batches = zip(*(torch.split(part, BATCH) for part in (test.images, noise)), strict=True)
    psnr = hidden_psnr(model, batches)
    first = np.unique(test.labels, return_index=True)[1]
    save_progress_image(model, test.images[first], noise[first], strip)
    return {
        "evidence": table.to_dict(),
        "few_labels": few_labels,
        "hidden_psnr": psnr.to_dict(),
        "shortfalls": list(shortfalls(table)) if config.minutes is None else [],
    }


def _cells(scores: list[dict[str, Any]]) -> list[str]:
    """Format the accuracies of a row, with one note where raw pixels do better."""
    cells = [str(Score(**(score | {"behind": False}))) for score in scores]
    behind = sum(score["behind"] for score in scores)
    return [*cells, f"{BEHIND} in {behind} of {len(scores)}" if behind else ""]
