"""AdamW with the published parameter groups, Muon if asked for, and what is trained at all."""

from __future__ import annotations

import torch
from torch import nn

from mae.config.run import OptimConfig
from mae.model.classifier import Classifier
from mae.train.optim.muon import Muon

TOKENS = ("cls_token", "mask_token", "pos_embed")


def parameter_groups(
    model: nn.Module,
    *,
    weight_decay: float,
    decay_tokens: bool,
    layer_decay: float = 1.0,
    depth: int = 0,
    muon: bool = False,
) -> list[dict[str, object]]:
    """Group the trainable parameters by weight decay and by the scale of their learning rate.

    Norms and biases (one dimension) are never decayed. Whether the cls and mask tokens and
    trained positions are differs between the published PyTorch code (pre-training: yes,
    fine-tuning: no) and the OpenMMLab recipes (no).

    Args:
        model: whatever is trained.
        weight_decay: of the parameters that are decayed.
        decay_tokens: whether tokens are.
        layer_decay: factor of the rate from each encoder block to the one before it.
        depth: encoder blocks; of no effect where `layer_decay` is 1.
        muon: whether the matrices of blocks have groups of their own, for `Muon`.

    Returns:
        Groups with `params`, `weight_decay`, `scale`, by which the learning rate of every step is
        multiplied (but for its fixed part, `fixed_rate_at`), and `parts`: how many matrices each
        is to Muon, 0 where AdamW updates it.

    Source: spec, section 2 ("no-wd set") and 3.1 ("layer decay").
    """
    groups: dict[tuple[float, bool, int], list[nn.Parameter]] = {
        (1.0, True, 0): [],
        (1.0, False, 0): [],
    }
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        token = name.rpartition(".")[2] in TOKENS
        decay = parameter.ndim > 1 and (decay_tokens or not token)
        scale = layer_decay ** (depth + 1 - layer_of(name, depth=depth))
        hidden = muon and parameter.ndim == 2 and "blocks." in name
        parts = (3 if name.endswith("qkv.weight") else 1) if hidden else 0
        groups.setdefault((scale, decay, parts), []).append(parameter)
    return [
        {
            "params": params,
            "weight_decay": weight_decay if decay else 0.0,
            "scale": scale,
            "parts": parts,
        }
        for (scale, decay, parts), params in groups.items()
        if params
    ]


def layer_of(name: str, *, depth: int) -> int:
    """Number the layer of a parameter: 0 embeds, 1 to `depth` are blocks, the rest comes last."""
    _, _, own = name.rpartition("encoder.")
    if own.startswith("blocks."):
        return int(own.split(".")[1]) + 1
    return 0 if own.startswith(("cls_token", "pos_embed", "patch_embed.")) else depth + 1


def adamw(
    model: nn.Module, optim: OptimConfig, *, layer_decay: float = 1.0, depth: int = 0
) -> torch.optim.AdamW:
    """Make the optimiser; the fused kernel updates all parameters of a group in one call.

    Where `optim.muon` says so, the matrices of blocks are updated by Muon.
    """
    groups = parameter_groups(
        model,
        weight_decay=optim.weight_decay,
        decay_tokens=optim.decay_tokens,
        layer_decay=layer_decay,
        depth=depth,
        muon=optim.muon,
    )
    kind = Muon if optim.muon else torch.optim.AdamW
    return kind(groups, lr=optim.lr, betas=optim.betas, eps=optim.eps, fused=True)


def choose_trained(classifier: Classifier, train_blocks: float | None) -> None:
    """Say which parameters are trained, in place.

    Args:
        classifier: its head and last norm, which the paper's Figure 9 leaves open, always are.
        train_blocks: last blocks that are, 0.5 for the MLP of the last one with its norm; none:
            everything, the positions too.

    Source: spec 3.1 (positions are trained) and 3.2; paper, Figure 9.
    """
    classifier.requires_grad_(True)  # noqa: FBT003
    if train_blocks is None:
        return
    encoder = classifier.encoder
    encoder.requires_grad_(False)  # noqa: FBT003
    encoder.norm.requires_grad_(True)  # noqa: FBT003
    blocks = list(encoder.blocks)
    half = [blocks[-1].norm2, blocks[-1].mlp]
    for part in half if train_blocks == 0.5 else blocks[len(blocks) - int(train_blocks) :]:
        assert isinstance(part, nn.Module)
        part.requires_grad_(True)  # noqa: FBT003
