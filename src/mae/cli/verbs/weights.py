"""Verbs for weight files: inspect, convert, diff, export, push."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Literal

from mae.report.tables import report_of
from mae.weights.given import Given, HeadPool, Take, Target


def weights_inspect(weights: Path, *, take: Take | None = None) -> object:
    """Report what a file or folder of weights holds, and the basis of each fact.

    Args:
        take: Network to read from a file with several; none: model.
    """
    from mae.weights.tools.inspect import inspect

    return inspect(weights, take=take)


def weights_convert(
    weights: Path,
    dst: Path,
    *,
    to: Target,
    encoder_only: bool = False,
    allow_missing: str | None = None,
    pool: HeadPool | None = None,
    given: Given,
) -> object:
    """Write weights in another layout, and verify that the model computes the same.

    Args:
        dst: File or folder to write.
        to: facebook: the published PyTorch layout; timm: a file; huggingface: a folder of its
            ViTMAE; dinov2: a folder of its Dinov2Model, for dense tasks; mae: a folder of ours.
        encoder_only: Leave out the decoder or the classifier's head.
        allow_missing: Patterns of tensor names that may be missing and are initialised anew, as in
            'decoder.norm.*'.
        pool: What the head of a classifier reads, mean of the patch tokens or cls token; none: as
            the file says.
    """
    from mae.weights.tools.convert import convert

    how = partial(convert, encoder_only=encoder_only, pool=pool, **given)
    allowed = allow_missing.split() if allow_missing else ()
    return how(weights, dst, to=to, allow_missing=allowed)


def weights_diff(
    weights: Path, other: Path, *, pool: HeadPool | None = None, given: Given
) -> object:
    """Show which tensors of two weights differ, and whether both compute the same.

    Exits with 0 if they give the same for the same images and mask, else with 1.

    Args:
        other: Weights to compare them with.
        pool: What the head of a classifier reads, mean of the patch tokens or cls token; none: as
            the file says.
    """
    from mae.weights.tools.diff import diff

    result = diff(weights, other, pool=pool, **given)
    return report_of(result)._replace(exit_code=0 if result.same else 1)


def weights_export(
    weights: Path,
    dst: Path,
    *,
    to: Literal["onnx", "torch-export"],
    part: Literal["encoder", "full", "classifier"] = "encoder",
    dynamic: bool = False,
    given: Given,
) -> object:
    """Write a network for other runtimes, and compare its outputs there with PyTorch.

    The encoder returns the tokens of whole images; the full model takes noise, one number per
    patch, and returns predictions and mask. Inputs are normalised images.

    Args:
        dst: File to write.
        to: onnx (.onnx) or torch-export (.pt2).
        part: encoder: images to tokens; full: images and noise to predictions and mask;
            classifier: images to the scores of the classes, which the file names.
        dynamic: Let height and width vary, besides the batch.
    """
    from mae.weights.tools.export import export

    return export(weights, dst, to=to, part=part, dynamic=dynamic, **given)


def weights_push(weights: Path, repo: str, *, public: bool = False) -> object:
    """Upload a folder of weights to the Hugging Face Hub, private unless --public.

    Args:
        repo: Repository on the Hub, OWNER/NAME.
        public: Make the repository public.
    """
    from mae.weights.tools.push import push

    return {"url": push(weights, repo, public=public)}
