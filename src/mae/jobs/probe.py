"""Probes of an encoder: k-NN, logistic regression, the paper's linear probe, partial tuning."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, Unpack

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from mae.config.model import refuse_without_effect
from mae.config.run import FinetuneConfig
from mae.data.batching.batch import BatchPlan
from mae.data.decoding.header import kind_of
from mae.data.sources.open import data_name
from mae.data.sources.subset import subset
from mae.errors import ConfigError
from mae.evaluation.classify import TOP
from mae.evaluation.evidence import score
from mae.evaluation.features import encoder_features, pixel_features, standardized
from mae.evaluation.few_labels import ALL, FewLabels, percent
from mae.evaluation.inputs import (
    DEFAULT,
    FeatureSettings,
    LabelledBatch,
    map_images,
    open_for_features,
)
from mae.evaluation.knn import NEIGHBOURS, TEMPERATURE, knn_accuracy, require_temperature
from mae.evaluation.labelled_data import labelled, require_classes
from mae.evaluation.linear_probe import PROTOCOL, max_update, train_head
from mae.evaluation.logistic import logistic_accuracy
from mae.evaluation.metrics import predictions_from_scores
from mae.evaluation.precision import set_precision
from mae.jobs.finetune import Tuned, finetune
from mae.model.create import create
from mae.model.encoder import Encoder
from mae.parallel.processes import open_communicator, require_agreement
from mae.progress import Progress
from mae.recipes.catalogue import FINETUNE_FOLDER
from mae.report.tables import plain, value_rows
from mae.train.measure import count_steps
from mae.train.resolve import Precision, batch_plan
from mae.weights.given import Given

MOST_PIXEL_VALUES = 1024  # raw-pixel features per image: 32 x 32 in grey, 18 x 18 in colour


class Method(NamedTuple):
    """A classifier on features."""

    name: str
    accuracy: Callable[..., float]
    """Accuracy, 0 to 1, from training features and classes, test features and classes."""
    splits_test: bool = False
    """Whether several processes split the test features, by a keyword `ranks`; otherwise each of
    them does the whole work."""


def choose_method(
    name: Literal["knn", "linear"], *, k: int | None, temperature: float | None = None, seed: int
) -> Method:
    """Choose between k-NN and logistic regression.

    Args:
        name: name of the method.
        k: number of neighbours; none: NEIGHBOURS.
        temperature: temperature of the neighbours' votes; none: TEMPERATURE.
        seed: seed of the validation part on which logistic regression chooses its regularisation.

    Raises:
        ConfigError: for an option that the method does not use, or an invalid temperature.
    """
    if name == "linear":
        refuse_without_effect("linear", "knn", k=k, temperature=temperature)
        return Method("logistic regression", partial(logistic_accuracy, seed=seed))
    k = NEIGHBOURS if k is None else k
    t = TEMPERATURE if temperature is None else temperature
    require_temperature(t)
    shown = "" if temperature is None else f", temperature {t:g}"
    return Method(
        f"k-NN, k = {k}{shown}", partial(knn_accuracy, k=k, temperature=t), splits_test=True
    )


class Probe(NamedTuple):
    """Accuracy on the test images, 0 to 1, mean and std over all runs."""

    method: str
    pool: str
    trained: float
    random: float
    """Of the same network, untrained."""
    pixels: float
    """Of raw pixels of the same view."""
    pixels_size: tuple[int, int]
    classes: int
    train: int
    """Number of training images."""
    test: int
    labels: str | None = None
    """The few labels that were asked for; None: all."""
    runs: int = 1
    trained_spread: float = 0.0
    random_spread: float = 0.0
    pixels_spread: float = 0.0

    def rows(self) -> list[tuple[str, str]]:
        """Return the rows of a table."""
        values = plain(self)
        for name in ("trained", "random", "pixels"):
            values[name] = percent(values[name], values.pop(f"{name}_spread"), runs=self.runs)
        others = (("raw pixels", self.pixels), ("random encoder", self.random))
        behind = [f"behind {name}" for name, other in others if self.trained < other]
        return [*value_rows(values), *(("trained", text) for text in behind)]


def probe(
    weights: str | Path,
    data: str | Path,
    method: Method,
    *,
    settings: FeatureSettings = DEFAULT,
    few: FewLabels = ALL,
    seed: int = 0,
    quiet: bool = False,
) -> Probe:
    """Classify test images by features standardised on the training images.

    Processes started by torchrun split the images; the accuracies are bit-identical to those of
    one process.

    Args:
        weights: whatever `load_encoder` takes.
        data: see `labelled`.
        method: how to classify.
        settings: how features are computed.
        few: how many labels to train on.
        seed: seed of the held-out images, the few labels and the random encoder. A fine-tuned
            classifier's own data are split as in its run, whose training images it has seen.
        quiet: show no progress.

    Raises:
        MaeError: for whatever the user must change, in one line.
    """
    with (
        open_communicator() as ranks,
        Progress(quiet=quiet or not ranks.is_main_process) as progress,
    ):
        if few.labels is None:
            refuse_without_effect("all labels", "--labels", seeds=few.runs)
        train, test, _, notes = labelled(data, seed=seed, weights=weights)
        for note in notes:
            progress.note(note)
        arguments = (str(weights), method.name, settings, few, seed)
        require_agreement(ranks, {"arguments": arguments, "data": train.source.fingerprint})
        draws = few.draws(*train, seed=seed, log=progress.note, ranks=ranks)
        trained = open_for_features(weights, settings.at(ranks.process), log=progress.note)
        random = create(trained.config, seed=seed).encoder.to(trained.cls_token.device).eval()
        set_precision(random, settings.precision, log=lambda line: None)  # the same as above
        pixels_size, pools = _pixels_size(trained), [settings.pool]

        def compute(batch: LabelledBatch) -> list[NDArray[Any]]:
            images = [batch.images]
            encoded = [encoder_features(e, images, pools=pools) for e in (trained, random)]
            # No scaling: the standardisation would undo it.
            pixels = pixel_features([F.adaptive_avg_pool2d(batch.images.float(), pixels_size)])
            return [batch.ids, batch.labels, *(each[settings.pool] for each in encoded), pixels]

        run = partial(map_images, compute, trained, batch=settings.batch, progress=progress)
        chosen = np.unique(np.concatenate(draws))
        ids, *known = run(train.source, chosen, label="training image", ranks=ranks)
        _, test_labels, *test_features = run(*test, label="test image", ranks=ranks)
        shared = {"ranks": ranks} if method.splits_test else {}
        accuracies = []
        for draw in draws:
            labels, *features = (column[np.isin(ids, draw)] for column in known)
            require_classes(train.source.class_names, labels)
            accuracies.append([
                method.accuracy(x, labels, y, test_labels, **shared)
                for x, y in map(standardized, features, test_features)
            ])  # fmt: skip
    scores = [score(each) for each in zip(*accuracies, strict=True)]
    names = ("trained", "random", "pixels")
    return Probe(
        method.name,
        settings.pool,
        **{name: each.mean for name, each in zip(names, scores, strict=True)},
        **{f"{name}_spread": each.spread for name, each in zip(names, scores, strict=True)},
        pixels_size=pixels_size,
        classes=len(train.source.class_names),
        train=int(np.isin(ids, draws[0]).sum()),
        test=len(test_labels),
        labels=few.labels,
        runs=len(draws),
    )


def _pixels_size(encoder: Encoder) -> tuple[int, int]:
    """Return the image size of the raw-pixel features."""
    (height, width), channels = encoder.config.image_size, encoder.config.channels
    factor = min(1.0, math.sqrt(MOST_PIXEL_VALUES / (channels * height * width)))
    return max(1, int(height * factor)), max(1, int(width * factor))


class PaperProbe(NamedTuple):
    """Accuracy of the linear heads on the test images, mean and std over all runs."""

    top1: float
    top5: float | None
    """None where there are no more than five classes."""
    loss: float
    classes: int
    train: int
    test: int
    epochs: float
    batch: int
    base_lr: float
    peak_lr: float
    steps: int
    """Steps of each run."""
    seeds: tuple[int, ...]
    """One per run, for initial weights, order and crops; all runs use the labels of one seed."""
    labels: str | None
    top1_spread: float
    top5_spread: float


def paper_config(
    *, epochs: float | None, batch: int | None, lr: float | None, seed: int, device: str
) -> FinetuneConfig:
    """Return the protocol with some values changed; warm-up keeps its fraction of the epochs.

    Raises:
        ConfigError: for an invalid value.
    """
    if batch is not None and batch < 2:
        raise ConfigError(f"batch: expected at least 2, for the batch norm, got {batch}")
    base, epochs = PROTOCOL.optim, PROTOCOL.epochs if epochs is None else epochs
    warmup = max(0.0, base.warmup_epochs * epochs / PROTOCOL.epochs)
    optim = replace(base, lr=base.lr if lr is None else lr, warmup_epochs=warmup)
    batch = PROTOCOL.batch if batch is None else batch
    return replace(PROTOCOL, epochs=epochs, batch=batch, optim=optim, seed=seed, device=device)


def paper_probe(
    weights: str | Path,
    data: str | Path,
    *,
    config: FinetuneConfig = PROTOCOL,
    few: FewLabels = ALL,
    crop_pct: float | None = None,
    precision: Precision = "float32",
    quiet: bool = False,
    **given: Unpack[Given],
) -> PaperProbe:
    """Train a linear head on crops as the paper does; test it on the evaluation view.

    Processes started by torchrun divide the images of each batch and of the test; each trains the
    same head on the features of the whole batch. The result is that of one process up to rounding.

    Args:
        weights: whatever `load_encoder` takes.
        data: see `labelled`.
        config: length, batch, rates, device, and the seed of everything.
        few: how many labels to train on; each run has its own seed, even with all labels.
        crop_pct: fraction of a test image that is kept, see `ModelConfig`; none: as in the weights.
        precision: of the encoder, see `set_precision`; the head is trained in float32.
        quiet: show no progress.
        given: what the weights do not say, see `Given`.

    Raises:
        MaeError: for whatever the user must change, in one line.
    """
    with (
        open_communicator() as ranks,
        Progress(quiet=quiet or not ranks.is_main_process) as progress,
    ):
        train, test, _, notes = labelled(data, seed=config.seed, weights=weights)
        for note in notes:
            progress.note(note)
        arguments = (str(weights), config, few, crop_pct, precision, given)
        require_agreement(ranks, {"arguments": arguments, "data": train.source.fingerprint})
        draws = few.draws(*train, seed=config.seed, log=progress.note, ranks=ranks)
        settings = FeatureSettings(
            "cls", DEFAULT.batch, config.device, crop_pct, given, precision=precision
        )
        encoder = open_for_features(weights, settings.at(ranks.process), log=progress.note)

        def compute(batch: LabelledBatch) -> list[NDArray[Any]]:
            features = encoder_features(encoder, [batch.images], pools=["cls"])
            return [batch.ids, batch.labels, features["cls"]]

        run_on = partial(map_images, compute, encoder, batch=DEFAULT.batch, progress=progress)
        ids, labels, tokens = run_on(*test, label="test image", ranks=ranks)
        runs: list[tuple[FinetuneConfig, BatchPlan, int]] = []
        for run, chosen in enumerate(draws):
            batch, seed = min(config.batch, len(chosen)), config.seed + run
            own = replace(config, model=encoder.config, batch=batch, seed=seed)
            chosen_images = subset(train.source, chosen)
            plan = batch_plan(own, chosen_images, kind_of(encoder.config), ranks.process)
            runs.append((own, plan, count_steps(own, plan, encoder)))
        first, _, steps = runs[0]
        if first.batch < (processes := ranks.process.world_size):
            raise ConfigError(
                f"ranks: got {processes}, the batch has {first.batch} images; start at most "
                f"{first.batch} ranks, or raise --batch"
            )
        if first.batch < config.batch:
            progress.note(f"batch: lowered from {config.batch:,} to {first.batch:,}, all images")
        if (change := max_update(first, num_steps=steps)) < 1:
            progress.note(
                f"lr: {first.optim.lr:g} changes the weights by at most {change:.2g} of their norm "
                f"in {steps:,} steps of {first.batch:,}, so almost nothing is learned; give "
                f"--lr {first.optim.lr * 5 / change:.2g} or more, or a smaller --batch"
            )
        found = []
        for own, plan, num_steps in runs:
            head = train_head(
                encoder, plan, config=own, num_steps=num_steps, progress=progress, ranks=ranks
            )
            with torch.inference_mode():
                scores = head(torch.from_numpy(tokens).to(encoder.cls_token.device))
            found.append(predictions_from_scores(scores, labels=labels, ids=ids))
    top1, top5 = (score([each.top(k) for each in found]) for k in (1, TOP))
    classes = len(train.source.class_names)
    return PaperProbe(
        top1=top1.mean,
        top5=top5.mean if classes > TOP else None,
        loss=float(np.mean([each.loss for each in found])),
        classes=classes,
        train=len(draws[0]),
        test=len(ids),
        epochs=config.epochs,
        batch=first.batch,
        base_lr=config.optim.lr,
        peak_lr=config.optim.peak_lr(first.batch),
        steps=steps,
        seeds=tuple(own.seed for own, _, _ in runs),
        labels=few.labels,
        top1_spread=top1.spread,
        top5_spread=top5.spread,
    )


def partial_probe(
    weights: str | Path,
    data: str | Path,
    *,
    blocks: float | None,
    out: Path | None = None,
    lr: float | None = None,
    fields: Mapping[str, Any],
    **how: Any,
) -> Tuned:
    """Fine-tune the last blocks with the recipe finetune-folder; the others are frozen.

    Args:
        weights: whatever `load_encoder` takes.
        data: see `labelled`.
        blocks: number of last blocks to train; 0.5: only the MLP of the last one.
        out: run directory; `runs/DATA-partial-BLOCKS` if none.
        lr: base rate; none: that of the recipe.
        fields: other fields of the recipe to change; None leaves a field unchanged.
        how: other arguments of `finetune`: labels, quiet and so on.

    Raises:
        MaeError: for whatever the user must change, in one line.

    Source: He et al. 2021, Figure 9.
    """
    if blocks is None:
        raise ConfigError("blocks: expected --blocks, as in 0.5, 1 or 4 of the last blocks")
    changed = {name: value for name, value in fields.items() if value is not None}
    optim = FINETUNE_FOLDER.optim if lr is None else replace(FINETUNE_FOLDER.optim, lr=lr)
    config = replace(FINETUNE_FOLDER, train_blocks=blocks, optim=optim, **changed)
    out = out or Path("runs", f"{data_name(data)}-partial-{blocks:g}")
    return finetune(config, data=data, weights=weights, out=out, based_on="finetune-folder", **how)
