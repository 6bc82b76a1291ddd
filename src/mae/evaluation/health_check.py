"""Check the health of a pre-training run on a fixed sample of its images, and log it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mae.config.run import PretrainConfig
from mae.data.augment.crop import evaluation_view
from mae.data.batching.batch import BatchPlan, EvaluationBatch, evaluation_batch
from mae.evaluation.findings import findings
from mae.evaluation.health import (
    dead_share,
    duplicate_share,
    effective_rank,
    gain_db,
    input_std,
    mean_cosine,
    nearest_label_share,
)
from mae.evaluation.reconstruction import IN_FILL, MEAN_COLOUR, MODEL, hidden_errors
from mae.model.autoencoder import MaskedAutoencoder
from mae.model.costs import encoder_flops, step_flops
from mae.model.encoder import pool_tokens
from mae.planning.estimate import stage_models
from mae.runs.log import BadFiles, LogWriter, read_rows
from mae.runs.state import TrainState
from mae.train.resolve import health_order
from mae.train.session import RunInProgress
from mae.train.step import Metrics

EVERY = 100
"""Steps between two checks, where the batch allows."""
MOST_TIME = 0.02
"""Of a run of at least 200 steps."""
LEAST_IMAGES, MOST_IMAGES = 16, 128
NAMED = 4
"""Images with the largest and with the smallest loss that a row names."""
_AT_ONCE = 32  # images of a forward pass, at most the micro-batch
_SPEED = 0.5  # of a check in arithmetic per second; a step's is 1


def sample_size(config: PretrainConfig, *, batch: int) -> tuple[int, int]:
    """Choose the images of a check and the steps between two, so that it takes `MOST_TIME`.

    They follow from the configuration alone, so that a resumed run checks the same images.

    Args:
        config: of the run.
        batch: images of a step that this process trains on.
    """
    step = min(step_flops(model, config.objective) for model, _ in stage_models(config))
    check = encoder_flops(config.model) + step_flops(config.model, config.objective) / 3
    # Micro-batches in parallel threads leave the check, which is in one of them, fewer threads.
    parts = 1 if config.device == "cuda" else math.ceil(batch / (config.fixed_micro_batch or batch))
    images = MOST_TIME * EVERY * batch * step / check * _SPEED / parts
    size = int(min(max(images, LEAST_IMAGES), MOST_IMAGES))
    return size, EVERY * math.ceil(size / images)


class HealthCheck:
    """The sample of a run and the log of its checks; on rank 0 alone.

    The sample is a random part of the images, at most half of it held out, in the view of
    evaluation and under fixed masks. It is read once.

    Args:
        run: the run.
        plan: defines its batches.
        step: at which training continues; rows of an earlier start after it are dropped.
    """

    def __init__(self, run: RunInProgress, plan: BatchPlan, *, step: int) -> None:
        config, count, held = run.config, len(run.source), len(plan.held_out)
        assert isinstance(config, PretrainConfig)
        size, self.every = sample_size(config, batch=plan.own_batch)
        self._run = run
        self._rows = LogWriter(run.rundir.health, log=run.progress.note)
        self._rows.truncate_after(step)
        self._checks = read_rows(self._rows.path)  # a long run would read them again and again
        shown = min(held, size // 2)
        order = health_order(config, np.arange(min(count, held + size - shown)), count=count)
        ids = np.concatenate([order[held:], order[:shown]])
        view = partial(evaluation_view, crop_pct=config.model.crop_pct)
        sample = evaluation_batch(
            run.source, ids.tolist(), kind=run.kind, size=plan.size, view=view
        )
        self._record(sample, plan.held_out)
        self._images, self._ids = sample.images, sample.ids.numpy()
        self._is_held = torch.from_numpy(np.isin(self._ids, plan.held_out))
        self._noise = plan.noise(self._ids, epoch=0)
        pixels = self._images.permute(0, 2, 3, 1).numpy()
        self._duplicates = duplicate_share([*pixels], count=count)
        self._baselines: dict[str, Tensor] | None = None
        self._input_std = 1.0
        self._ascending = torch.arange(len(self._ids))

    def _record(self, sample: EvaluationBatch, held_out: Sequence[int]) -> None:
        """Record which images are held out, and name those that cannot be read."""
        run = self._run
        if held_out and "held_out" not in run.record:
            run.record["held_out"] = [run.source.name(index) for index in held_out]
            run.write_record()
        files = BadFiles(run.rundir.bad_files)
        for image in sample.bad:  # held-out images are read nowhere else
            if files.add(image.name, image.reason):
                run.progress.note(f"unreadable: {image.name}: {image.reason}")

    def __call__(self, state: TrainState, metrics: Metrics) -> None:
        """Compute the figures of the model, write them, and note what is found to be wrong."""
        if len(self._ids) < 2:
            return
        row = {
            "step": state.step,
            "grad_norm": float(metrics.grad_norm) if metrics.finite else None,
            **self._figures(state.model),
        }
        known = {name for old in self._checks for name in old["findings"]}
        found = findings([*self._checks, row], num_steps=self._run.record["num_steps"])
        row["findings"] = [finding.name for finding in found]
        self._checks.append(row)
        self._rows.append(row)
        for finding in found:
            if finding.name not in known:
                self._run.progress.note(f"health: {finding.text}")

    def extremes(self) -> tuple[Tensor, Tensor]:
        """Return images and noise of the largest losses, then the smallest, at the last check."""
        few = min(NAMED, len(self._ids) // 2)
        places = torch.cat([self._ascending.flip(0)[:few], self._ascending[:few].flip(0)])
        return self._images[places], self._noise[places]

    def _figures(self, model: torch.nn.Module) -> dict[str, Any]:
        assert isinstance(model, MaskedAutoencoder)
        model.eval()
        features, loss, squares = self._pass(model)
        model.train()
        held = self._is_held
        figures: dict[str, Any] = {"images": int((~held).sum()), "held_out": int(held.sum())}
        for prefix, part in (("", ~held), ("held_out_", held)):
            if bool(part.any()):
                errors = {name: float(each[part].sum()) for name, each in squares.items()}
                figures[f"{prefix}loss"] = float(loss[part].mean())
                figures[f"{prefix}gain"] = gain_db(errors[MODEL], errors[IN_FILL])
                figures[f"{prefix}gain_over_mean"] = gain_db(errors[MODEL], errors[MEAN_COLOUR])
        if bool(features.isfinite().all()):
            for name, of in (
                ("rank", effective_rank),
                ("dead", dead_share),
                ("cosine", mean_cosine),
            ):
                figures[name] = of(features)
        if (labels := self._run.source.labels) is not None:
            own = labels[self._ids]
            figures["nearest_label"] = nearest_label_share(features, own)
        figures = {name: v if math.isfinite(v) else None for name, v in figures.items()}
        figures |= {"duplicates": self._duplicates, "input_std": self._input_std}
        self._ascending = loss.argsort(stable=True)
        few = min(NAMED, len(loss) // 2)
        named = [
            (self._run.source.name(int(self._ids[place])), float(loss[place]))
            for place in (*self._ascending[:few], *self._ascending[len(loss) - few :])
        ]
        return figures | {"worst": named[: few - 1 : -1], "best": named[:few]}

    def _pass(self, model: MaskedAutoencoder) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Return features n D, loss n, and squared errors n by name, on the host."""
        half, features, errors, moments = self._run.config.half, [], [], []
        device = model.encoder.cls_token.device
        dtype = torch.float16 if half == "fp16" else torch.bfloat16
        size = min(_AT_ONCE, self._run.config.fixed_micro_batch or _AT_ONCE)
        parts = zip(*(torch.split(t, size) for t in (self._images, self._noise)), strict=True)
        with torch.inference_mode(), torch.autocast(device.type, dtype, half is not None):
            for stored, noise in parts:
                images = model.normalize(stored.to(device))
                tokens = model.encoder(images).float()
                features.append(pool_tokens(tokens, pool="mean", grid=model.config.grid).cpu())
                if first := self._baselines is None:
                    pixels = images.float()
                    moments.append((pixels.mean(dim=(2, 3)), pixels.square().mean(dim=(2, 3))))
                errors.append(hidden_errors(model, stored, noise, baselines=first))
        squares = {
            name: torch.cat([each.squares[name] for each in errors]).cpu()
            for name in errors[0].squares
        }
        if moments:
            means, mean_squares = (torch.cat(each).cpu() for each in zip(*moments, strict=True))
            self._input_std = input_std(means, mean_squares)
        self._baselines = self._baselines or {n: squares[n] for n in (IN_FILL, MEAN_COLOUR)}
        loss = torch.cat([each.loss for each in errors]).cpu()
        return torch.cat(features), loss, squares | self._baselines
