"""Probes of an encoder: k-NN, logistic regression, the paper's linear probe, partial tuning."""

from __future__ import annotations

from collections.abc import Sequence
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
from mae.evaluation.features import encoder_features, pixel_features, pixels_size, standardized
from mae.evaluation.few_labels import ALL, FewLabels, percent
from mae.evaluation.inputs import (
    DEFAULT,
    FeatureSettings,
    LabelledBatch,
    Weights,
    map_images,
    open_for_features,
    weights_name,
)
from mae.evaluation.labelled_data import labelled, require_classes
from mae.evaluation.linear_probe import PROTOCOL, max_update, paper_config, train_head
from mae.evaluation.method import Method, choose_method
from mae.evaluation.metrics import predictions_from_scores
from mae.evaluation.precision import set_precision
from mae.jobs.finetune import Tuned, finetune
from mae.model.create import create
from mae.model.encoder import Pool
from mae.parallel.processes import open_communicator, require_agreement
from mae.progress import Progress
from mae.report.notebook import shown
from mae.report.tables import plain, value_rows
from mae.train.measure import count_steps
from mae.train.resolve import Precision, batch_plan
from mae.weights.given import Given, path_of


@shown
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
    method: Literal["knn", "linear", "partial"],
    weights: Weights,
    data: str | Path,
    *,
    blocks: float | None = None,
    out: str | Path | None = None,
    protocol: Literal["quick", "paper"] = "quick",
    k: int | None = None,
    temperature: float | None = None,
    labels: str | None = None,
    labels_out: str | Path | None = None,
    seeds: int | None = None,
    epochs: float | None = None,
    batch: int | None = None,
    lr: float | None = None,
    pool: Pool | None = None,
    device: str = "auto",
    precision: Precision | None = None,
    crop_pct: float | None = None,
    seed: int = 0,
    quiet: bool = False,
    command: Sequence[str] = (),
    **given: Unpack[Given],
) -> Probe | PaperProbe | Tuned:
    """Classify by neighbours or logistic regression on features, or train the last blocks.

    Args:
        method: "knn": vote of neighbours; "linear": logistic regression on features, or the
            paper's linear probe; "partial": fine-tuning of the last blocks and a head.
        weights: whatever `load_encoder` takes.
        data: labelled images, see `labelled`.
        blocks: for partial: last blocks to train; 0.5: the MLP of the last one.
        out: for partial: run directory.
        protocol: for linear: "quick", on features computed once; "paper", 90 epochs of crops
            with LARS.
        k: for knn: number of neighbours; none: 20.
        temperature: for knn: temperature of the votes; none: 0.07.
        labels: few labels, see `FewLabels`; none: all.
        labels_out: .csv to write with the choice of labels, to repeat it.
        seeds: number of runs: draws of labels, or seeds of the paper's linear probe; none: 1.
        epochs: of the paper's linear probe (none: 90) or of partial (50).
        batch: images of a batch; of a step of the paper's linear probe or of partial.
        lr: base rate of the paper's linear probe (none: 0.1) or of partial (1e-3).
        pool: see `Encoder.encode`; none: grid of a network up to ViT-S, else mean; of partial mean.
        device: see `choose_device`.
        precision: of the frozen encoder, see `set_precision`; none: float32, for partial auto.
        crop_pct: fraction of an image that is kept, see `ModelConfig`; none: as in the weights.
        seed: key of every random choice.
        quiet: show no progress and no notes.
        command: the command line, for the record of partial.
        given: what the weights do not say, see `Given`.

    Raises:
        MaeError: for whatever the user must change, in one line.

    Source: He et al. 2021, Table 10 (linear probe) and Figure 9 (partial fine-tuning).
    """
    if method == "partial":
        refuse_without_effect(
            "partial", "knn or linear", k=k, temperature=temperature, labels_out=labels_out,
            seeds=seeds, protocol=None if protocol == "quick" else protocol,
        )  # fmt: skip
        if pool == "grid":
            raise ConfigError("pool: grid has no effect on partial, expected mean or cls")
        fields: dict[str, Any] = {
            "epochs": epochs, "batch": batch, "pool": pool, "seed": seed, "device": device,
            "precision": precision, "lr": lr, "crop_pct": crop_pct,
        }  # fmt: skip
        if blocks is None:
            raise ConfigError("blocks: expected --blocks, as in 0.5, 1 or 4 of the last blocks")
        return finetune(
            data=data, weights=path_of(weights, name="weights"), labels=labels, quiet=quiet,
            command=command,
            out=out or Path("runs", f"{data_name(data)}-partial-{blocks:g}"),
            train_blocks=float(blocks),
            **{name: value for name, value in fields.items() if value is not None}, **given,
        )  # fmt: skip
    refuse_without_effect(method, "partial", blocks=blocks, out=out)
    few = FewLabels(labels, None if labels_out is None else Path(labels_out), seeds)
    if protocol == "paper":
        if method == "knn":
            refuse_without_effect("knn", "linear", protocol=protocol)
        unused = {"k": k, "temperature": temperature, "pool": pool}
        refuse_without_effect("the paper's protocol", "--protocol quick", **unused)
        config = paper_config(epochs=epochs, batch=batch, lr=lr, seed=seed, device=device)
        return paper_probe(
            weights, data, config=config, few=few, crop_pct=crop_pct,
            precision=precision or "float32", quiet=quiet, **given,
        )  # fmt: skip
    refuse_without_effect("the quick protocol", "--protocol paper", epochs=epochs, lr=lr)
    how = choose_method(method, k=k, temperature=temperature, seed=seed)
    batch = DEFAULT.batch if batch is None else batch
    settings = FeatureSettings(
        pool, batch, device, crop_pct, given, precision=precision or "float32"
    )
    return feature_probe(weights, data, how, settings=settings, few=few, seed=seed, quiet=quiet)


def feature_probe(
    weights: Weights,
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
        arguments = (weights_name(weights), method.name, settings, few, seed)
        require_agreement(ranks, {"arguments": arguments, "data": train.source.fingerprint})
        draws = few.draws(*train, seed=seed, log=progress.note, ranks=ranks)
        trained = open_for_features(weights, settings.at(ranks.process), log=progress.note)
        random = create(trained.config, seed=seed).encoder.to(trained.cls_token.device).eval()
        set_precision(random, settings.precision, log=lambda line: None)  # the same as above
        size, pool = pixels_size(trained.config), settings.pool_of(trained.config)

        def compute(batch: LabelledBatch) -> list[NDArray[Any]]:
            images = [batch.images]
            encoded = [encoder_features(e, images, pools=[pool]) for e in (trained, random)]
            # No scaling: the standardisation would undo it.
            pixels = pixel_features([F.adaptive_avg_pool2d(batch.images.float(), size)])
            return [batch.ids, batch.labels, *(each[pool] for each in encoded), pixels]

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
        pool,
        **{name: each.mean for name, each in zip(names, scores, strict=True)},
        **{f"{name}_spread": each.spread for name, each in zip(names, scores, strict=True)},
        pixels_size=size,
        classes=len(train.source.class_names),
        train=int(np.isin(ids, draws[0]).sum()),
        test=len(test_labels),
        labels=few.labels,
        runs=len(draws),
    )


@shown
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


def paper_probe(
    weights: Weights,
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
        arguments = (weights_name(weights), config, few, crop_pct, precision, given)
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
