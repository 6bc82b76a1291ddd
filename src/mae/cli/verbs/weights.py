"""Verbs for weight files: inspect, convert, diff, export, push."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Literal

from mae.cli.verbs.shown import HeadPool, Shown, shown
from mae.weights.given import Given, Take


def weights_inspect(weights: Path, *, take: Take | None = None) -> Shown:
    """Say what a file or folder of weights holds, and how sure each fact is."""
    from mae.weights.tools.inspect import inspect

    return shown(inspect(weights, take=take))


def weights_convert(
    weights: Path,
    dst: Path,
    *,
    to: Literal["facebook", "timm", "huggingface", "mae"],
    encoder_only: bool = False,
    allow_missing: str | None = None,
    pool: HeadPool | None = None,
    given: Given,
) -> Shown:
    """Write weights in another layout, and prove that the model is the same.

    --encoder-only leaves a decoder or a head; --allow-missing 'decoder.norm.*' starts fresh what
    is missing.
    """
    from mae.weights.tools.convert import convert

    how = partial(convert, encoder_only=encoder_only, pool=pool, **given)
    allowed = allow_missing.split() if allow_missing else ()
    return shown(how(weights, dst, to=to, allow_missing=allowed))


def weights_diff(
    weights: Path, other: Path, *, pool: HeadPool | None = None, given: Given
) -> Shown:
    """Show which tensors of two weights differ, and whether both do the same.

    Exits with 0 where they give the same for the same pictures and mask, else with 1.
    """
    from mae.weights.tools.diff import diff

    result = diff(weights, other, pool=pool, **given)
    return Shown(result.values(), result.rows(), exit_code=0 if result.same else 1)


def weights_export(
    weights: Path,
    dst: Path,
    *,
    to: Literal["onnx", "torch-export"],
    part: Literal["encoder", "full"] = "encoder",
    dynamic: bool = False,
    given: Given,
) -> Shown:
    """Write a network for other runtimes, and hold it against PyTorch there.

    The encoder gives the tokens of whole pictures; the full model takes noise, a number a patch,
    and gives predictions and mask. Images go in as the network takes them, normalised.
    """
    from mae.weights.tools.export import export

    return shown(export(weights, dst, to=to, part=part, dynamic=dynamic, **given))


def weights_push(weights: Path, repo: str, *, public: bool = False) -> Shown:
    """Put a folder of weights on the Hugging Face Hub, privately unless asked otherwise."""
    from mae.weights.tools.push import push

    url = push(weights, repo, public=public)
    return Shown({"url": url}, [("pushed", url)])
