"""Load tensors into a module strictly, with a likely cause in the error message."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatch

import torch
from torch import nn

from mae.errors import WeightsError
from mae.weights.io.safe_load import is_finite
from mae.weights.read import RawWeights

NO_DECODER = "decoder: not in this file; reconstruction is not possible, features are"

# Marks in tensor names of unsupported networks, and the feature that each indicates.
_FOREIGN = {
    ("rel_pos", "relative_position"): "relative positions, of a detector or BEiT",
    ("ls1", "gamma", "lambda"): "layer scale",
    ("dist_token", "distillation_token", "head_dist"): "a distillation token",
    ("reg_token", "register_token"): "register tokens",
    ("q_norm",): "norms of queries and keys",
    ("attn.norm",): "norms in the attention",
    ("mlp.norm",): "norms in the MLP",
    ("norm_pre",): "a norm before the blocks",
    ("attn_pool",): "attention pooling (global_pool map)",
    ("mlp.fc1_g", "mlp.w12"): "a gated MLP (SwiGLU)",
}
_COUNT = "num_batches_tracked"  # of batch norms, the only whole number in a model

# Tensors that unsupported networks lack.
_ABSENT = {
    ".attn.qkv.bias": "no biases of queries, keys and values",
    ".attn.proj.bias": "no biases",
    ".norm1.bias": "norms without biases (RMS norm)",
    ".cls_token": "no cls token",
}


def load_strict(
    module: nn.Module,
    raw: RawWeights,
    *,
    prefix: str = "",
    expected: str = "a masked autoencoder",
    allow_missing: tuple[str, ...] = (),
) -> list[str]:
    """Load float32 copies of the tensors whose names start with the prefix into a module.

    Args:
        module: may be on the meta device if no tensor may be missing.
        raw: all tensors with the prefix are loaded, except those of unused layers.
        prefix: prefix of mae's tensor names.
        expected: type of weights expected, for the error message.
        allow_missing: patterns of names; missing tensors that match keep their current values.

    Returns:
        A note that names the tensors that kept their values; empty if there are none.

    Raises:
        WeightsError: for tensors that are missing, unexpected, of another shape or not finite.
    """
    held = {
        name: tensor
        for name, tensor in raw.tensors.items()
        if name.startswith(prefix) and not name.startswith("unused.")
    }
    wanted = {prefix + name: tensor.shape for name, tensor in module.state_dict().items()}
    missing = [name for name in wanted if name not in held]
    allowed = _allowed(missing, raw, patterns=allow_missing)
    fresh = [name for name in missing if name in allowed]
    both = [name for name in wanted if name in held]
    misshapen = [name for name in both if held[name].shape != wanted[name]]
    shapes = {name: f" {[*held[name].shape]}, expected {[*wanted[name]]}" for name in misshapen}
    problems = {
        "missing": [name for name in missing if name not in allowed],
        "unexpected": [name for name in held if name not in wanted],
        "of another shape": misshapen,
        "not finite numbers": [n for n in both if not (n.endswith(_COUNT) or is_finite(held[n]))],
    }
    if any(problems.values()):
        cause = _likely_cause(raw, problems) or f"is it whole, and of {expected}?"
        raise WeightsError(f"{raw.path}: {count_names(raw, problems, shapes)}; {cause}")
    copies = {
        name.removeprefix(prefix): tensor.detach().to(_dtype(name), copy=True).contiguous()
        for name, tensor in held.items()
    }
    # Assigned, not copied: a model on the meta device needs no memory and no random numbers.
    module.load_state_dict(copies, assign=True, strict=not fresh)
    if not fresh:
        return []
    return [f"{len(fresh)} start fresh, as allowed: {'; '.join(map(raw.rename, fresh))}"]


def _dtype(name: str) -> torch.dtype:
    return torch.int64 if name.endswith(_COUNT) else torch.float32


def count_names(
    raw: RawWeights, problems: Mapping[str, Sequence[str]], details: Mapping[str, str]
) -> str:
    """Count tensors by problem, and name at most five of each as in the file, with details."""
    return ", ".join(
        f"{len(names)} {problem} "
        f"({'; '.join(raw.rename(name) + details.get(name, '') for name in names[:5])})"
        for problem, names in problems.items()
        if names
    )


def _allowed(missing: list[str], raw: RawWeights, *, patterns: tuple[str, ...]) -> set[str]:
    """Return the missing names that match a pattern; each pattern must match at least one."""
    allowed = set[str]()
    for pattern in patterns:
        names = {n for n in missing if fnmatch(n, pattern) or fnmatch(raw.rename(n), pattern)}
        if not names:
            raise WeightsError(
                f"{raw.path}: allow-missing: nothing that is missing matches {pattern!r}; missing "
                f"are {'; '.join(map(raw.rename, missing[:5])) or 'none'}"
            )
        allowed |= names
    return allowed


def unsupported(raw: RawWeights, *, missing: Iterable[str], unexpected: Iterable[str]) -> str:
    """Describe the unsupported network that missing and unexpected names (mae's) indicate."""
    for marks, what in _FOREIGN.items():
        if any(mark in name for name in unexpected for mark in marks):
            return f"it has {what}, which mae does not support"
    for mark, what in _ABSENT.items():
        lacks = not any(name.endswith(mark) for name in raw.tensors)
        if lacks and any(name.endswith(mark) for name in missing):
            return f"it has {what}, unlike this network"
    return ""


def _likely_cause(raw: RawWeights, problems: Mapping[str, list[str]]) -> str:
    """Guess why weights do not fit, from mae's names by problem; empty if there is no guess."""
    missing, misshapen = problems["missing"], problems["of another shape"]
    if (raw.metadata.segmenter or raw.metadata.detector) and "encoder.norm.weight" in missing:
        kind, verb = ("segmenter", "segment") if raw.metadata.segmenter else ("detector", "detect")
        return (
            f"it is a {kind}, whose encoder has no last norm (mae {verb} evaluate, predict); "
            "give the weights that it was trained from"
        )
    if other := unsupported(raw, missing=missing, unexpected=problems["unexpected"]):
        return other
    if "encoder.norm.weight" in missing and "fc_norm.weight" in raw.tensors:
        return (
            "it was fine-tuned with fc_norm in place of the encoder's norm: it is a classifier "
            "(mae predict, evaluate, embed); give pre-trained weights"
        )
    of_decoder = missing and all(name.startswith("decoder.") for name in missing)
    if of_decoder and not raw.has_decoder:
        return NO_DECODER
    if "encoder.patch_embed.proj.weight" in misshapen:
        return "it is of another patch size or other channels"
    if {"encoder.pos_embed", "decoder.pos_embed"} & set(misshapen):
        return "it is of another image size or patch size"
    if "head.weight" in misshapen:
        return "its head is of other classes"
    return ""
