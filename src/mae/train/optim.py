"""AdamW with the published parameter groups."""

from __future__ import annotations

import torch
from torch import nn

from mae.config import OptimConfig

TOKENS = ("cls_token", "mask_token")


def parameter_groups(
    model: nn.Module, *, weight_decay: float, decay_tokens: bool
) -> list[dict[str, object]]:
    """Split the trainable parameters into decayed and not decayed.

    Norms and biases (one dimension) are never decayed. Whether the cls and mask tokens are
    differs between the published PyTorch code (yes) and the OpenMMLab recipes (no).

    Source: spec, section 2 ("no-wd set").
    """
    decayed: list[nn.Parameter] = []
    kept: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        token = name.rpartition(".")[2] in TOKENS
        decay = parameter.ndim > 1 and (decay_tokens or not token)
        (decayed if decay else kept).append(parameter)
    return [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": kept, "weight_decay": 0.0},
    ]


def adamw(model: nn.Module, optim: OptimConfig) -> torch.optim.AdamW:
    """Make the optimiser; the fused kernel updates all parameters in one call."""
    groups = parameter_groups(
        model, weight_decay=optim.weight_decay, decay_tokens=optim.decay_tokens
    )
    return torch.optim.AdamW(groups, lr=optim.lr, betas=optim.betas, eps=optim.eps, fused=True)
