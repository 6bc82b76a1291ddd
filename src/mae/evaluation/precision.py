"""Precision of the forward passes of evaluation and embedding."""

from __future__ import annotations

import torch

from mae.data.types import Log
from mae.errors import ConfigError
from mae.model.encoder import Encoder
from mae.model.onednn_linear import HalfWeights
from mae.model.processor import emulates_bf16
from mae.planning.hardware import has_bf16
from mae.train.resolve import Precision, resolve_precision


def set_precision(encoder: Encoder, precision: Precision, *, log: Log) -> Precision:
    """Let the encoder compute in this precision from now on, for inference alone.

    In bf16, its matrix products are under autocast; its weights, which must not change any more,
    norms and output stay float32. Pooling and heads are not affected.

    Args:
        encoder: on its device.
        precision: auto is bf16 on a device that has it of its own, else float32.
        log: called with a line if auto chooses bf16, or if the device emulates it.

    Returns:
        The precision in use.

    Raises:
        ConfigError: for fp16.
    """
    device = encoder.cls_token.device
    known = has_bf16(device)
    found = resolve_precision(precision, has_bf16=known)
    if found == "float32":
        return found
    if found != "bf16":
        raise ConfigError(f"precision: got {found}, expected float32, bf16 or auto")
    if precision == "auto":
        log("precision: bf16, chosen for this device; float32 gives slightly different features")
    if emulates_bf16() if device.type == "cpu" else device.type == "cuda" and not known:
        log("precision: this device emulates bf16, slower than float32; use --precision float32")
    if device.type == "cpu":
        HalfWeights(encoder).__enter__()  # for the rest of the encoder's life
    in_bf16 = torch.autocast(device.type, torch.bfloat16)
    encoder.forward = in_bf16(encoder.forward)  # type: ignore[method-assign]
    return found
