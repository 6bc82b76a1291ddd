"""Verbs that apply weights to images: probe, evaluate, worth, predict, reconstruct, embed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal

from mae.cli.verbs.shared import Pool, Precision, call
from mae.config.objective import MaskKind
from mae.weights.given import Given, HeadPool


def probe(
    method: Literal["knn", "linear", "partial"],
    weights: Path,
    *,
    data: str,
    blocks: float | None = None,
    out: Path | None = None,
    protocol: Literal["quick", "paper"] = "quick",
    k: int | None = None,
    temperature: float | None = None,
    labels: str | None = None,
    labels_out: Path | None = None,
    seeds: int | None = None,
    epochs: float | None = None,
    batch: int | None = None,
    lr: float | None = None,
    pool: Pool | None = None,
    device: str = "auto",
    precision: Precision | None = None,
    crop_pct: float | None = None,
    seed: int = 0,
    given: Given,
    quiet: bool = False,
) -> object:
    """Classify by neighbours or logistic regression on features, or train the last blocks.

    DATA holds one folder per class, of which a fifth is held out; or train/ and val/ with such
    folders.

    Args:
        method: knn: vote of neighbours; linear: logistic regression on features, or the paper's
            linear probe; partial: fine-tuning of the last blocks and a head.
        blocks: For partial: last blocks to train; 0.5: the MLP of the last one.
        out: For partial: folder of the run.
        protocol: For linear: quick, on features computed once; paper, 90 epochs of crops with
            LARS.
        k: For knn: number of neighbours; none: 20.
        temperature: For knn: the smaller, the more the nearest neighbours decide; none: 0.07.
        labels: Few labels: a fraction as in 1%, a number as in 10/class, or a .csv of an earlier
            draw.
        labels_out: File for the choice of labels (.csv), to repeat it.
        seeds: Number of runs: draws of labels, or seeds of the paper's linear probe; none: 1.
        epochs: Passes over the data of the paper's linear probe (none: 90) or of partial (50).
        batch: Images per batch; per step of the paper's linear probe (none: 16384) or of partial.
        lr: Base learning rate per 256 images of the paper's linear probe (none: 0.1) or of partial
            (none: 1e-3).
        pool: Mean of the patch tokens, cls token, or means over a 3 x 3 grid; none: grid of a
            network up to ViT-S, else mean; of partial mean.
        precision: Of the frozen encoder; auto: bf16 on a device that has it. None: float32, and
            auto for partial.
        seed: Key of every random choice.
    """
    asked = {**locals()}
    from mae.jobs.probe import probe as job

    return call(job, asked, command=["mae", *sys.argv[1:]])


def evaluate(
    weights: Path,
    *,
    data: str,
    set: Literal[
        "folder", "imagenet", "imagenet-a", "imagenet-r", "imagenet-sketch", "imagenet-c"
    ] = "folder",
    all_classes: bool = False,
    split: Literal["train", "val", "test"] | None = None,
    out: Path | None = None,
    predictions: Path | None = None,
    batch: int = 64,
    device: str = "auto",
    precision: Precision = "float32",
    crop_pct: float | None = None,
    pool: HeadPool | None = None,
    given: Given,
    quiet: bool = False,
) -> object:
    """Score a fine-tuned classifier, overall and per class; or its errors on ImageNet-C.

    DATA holds one folder per class, with the names of the classifier's classes, or splits with such
    folders, of which val/ is scored, else test/. Of the data of its own fine-tuning, only the
    held-out part is scored.

    Args:
        set: Dataset in DATA, which determines the classes and the view.
        all_classes: For imagenet-a and imagenet-r: choose among all classes, not among 200.
        split: Split to score; none: val or test, or the part that fine-tuning held out.
        out: Report to write: .png with the confusion matrix, or .html with everything.
        predictions: File with one row per image (.csv, or .parquet with pyarrow).
        batch: Images per batch.
        precision: Of the encoder; auto: bf16 on a device that has it.
        pool: What the head reads, mean of the patch tokens or cls token; none: as the file says.
    """
    asked = {**locals()}
    from mae.jobs.evaluate import evaluate as job

    return call(job, asked)


def worth(
    *,
    data: str,
    labels: str | None = None,
    minutes: float = 20.0,
    weights: str | None = None,
    out: Path | None = None,
    draws: int = 5,
    pool: Pool = "grid",
    device: str = "auto",
    seed: int = 0,
    quiet: bool = False,
) -> object:
    """Say whether pre-training helps on your images, and how many labels it saves.

    Raw pixels, a random encoder, given weights as they are and trained further, MAE from scratch
    and training on the labels alone learn from the same few labels and are tested on the same
    images. DATA holds one folder per class, of which a fifth is held out; or train/ and val/ with
    such folders; or images without labels, if --labels names a list. A repeated call resumes.

    Args:
        labels: Labels of a draw: a number as in 10/class, a fraction as in 1%, or a .csv of earlier
            draws; or a list of path,label of some of the images. None: 10/class, or half of the
            smallest class.
        minutes: Divided equally between the starts that train.
        weights: Weights to compare, several separated by commas.
        out: Folder of the runs and the page; none: runs/DATA-worth.
        draws: Number of draws of labels.
        pool: Mean of the patch tokens, cls token, or means over a 3 x 3 grid.
        seed: Key of every random choice.
    """
    from mae.jobs.worth import worth

    given = [str(Path(each).expanduser()) for each in (weights or "").split(",") if each]
    return worth(
        data=data, labels=labels, minutes=minutes, weights=given, out=out, draws=draws, pool=pool,
        device=device, seed=seed, quiet=quiet, command=["mae", *sys.argv[1:]],
    )  # fmt: skip


def predict(
    weights: Path,
    *images: Path,
    out: Path | None = None,
    top: int = 1,
    sort: Literal["uncertainty"] | None = None,
    sheet: Path | None = None,
    batch: int = 64,
    device: str = "auto",
    precision: Precision = "float32",
    crop_pct: float | None = None,
    pool: HeadPool | None = None,
    given: Given,
    quiet: bool = False,
) -> object:
    """Classify images with a fine-tuned classifier; with --out, resumes a stopped job.

    Args:
        weights: Run, folder or file of a fine-tuned classifier (mae finetune).
        images: Image files, folders, packs, lists, .tar or .npy files; labels are not used.
        out: File with a row per image: .csv, .json, or .parquet (with pyarrow).
        top: Classes of each image to show and write, the most likely ones.
        sort: uncertainty: the least certain images first, by 1 - probability of the class. None:
            in the order of the images.
        sheet: Thumbnails to draw (.png), grouped by predicted class.
        batch: Images per batch.
        precision: Of the encoder; auto: bf16 on a device that has it.
        pool: What the head reads, mean of the patch tokens or cls token; none: as the file says.
    """
    asked = {**locals()}
    from mae.jobs.predict import predict as job

    return call(job, asked, command=["mae", *sys.argv[1:]])


def reconstruct(
    weights: Path,
    *images: Path,
    out: Path = Path("reconstruction.png"),
    mask: Path | None = None,
    mask_kind: MaskKind | None = None,
    mask_ratio: float | None = None,
    seed: int | None = None,
    device: str = "auto",
    crop_pct: float | None = None,
    given: Given,
    quiet: bool = False,
) -> object:
    """Draw images masked, reconstructed, and pasted together.

    Args:
        images: Image files, or folders of them.
        out: File to write, .png or .html.
        mask: Image file of a mask for every image: white is hidden, black visible; a pixel for each
            patch, or the size of the model's images. None: masks are drawn.
        mask_kind: How the hidden patches are chosen; none: as in training.
        mask_ratio: Fraction of the patches that is hidden; none: as in training.
        seed: Key of the masks; none: 0.
    """
    asked = {**locals()}
    from mae.jobs.reconstruct import reconstruct as job

    return call(job, asked)


def embed(
    weights: Path,
    *,
    data: str,
    out: Path,
    pool: Pool = "mean",
    batch: int = 64,
    device: str = "auto",
    precision: Precision = "float32",
    crop_pct: float | None = None,
    given: Given,
    quiet: bool = False,
) -> object:
    """Write the features of every image; resumes where it was stopped.

    Args:
        out: File to write: .npy, with the names of its rows in a .tsv; or .parquet with both.
        pool: Mean of the patch tokens, cls token, or means over a 3 x 3 grid.
        batch: Images per batch.
        precision: Of the network; auto: bf16 on a device that has it.
    """
    from mae.evaluation.inputs import FeatureSettings
    from mae.jobs.embed import embed_to_file

    settings = FeatureSettings(pool, batch, device, crop_pct, given, precision=precision)
    command = ["mae", *sys.argv[1:]]
    return embed_to_file(weights, data, out=out, settings=settings, command=command, quiet=quiet)
