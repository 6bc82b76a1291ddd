"""Optimizer construction: parameter groups, layer decay and frozen parameters."""

from __future__ import annotations

import torch
from torch import nn

from mae.config.run import OptimConfig
from mae.model.classifier import Classifier
from mae.model.dense.segmenter import Segmenter
from mae.train.optim.lars import Lars
from mae.train.optim.muon import Muon
from mae.transfer.detector import Detector

TOKENS = ("cls_token", "mask_token", "pos_embed")
NORMS = (nn.LayerNorm, nn.GroupNorm, nn.BatchNorm1d, nn.BatchNorm2d)
OF_BLOCKS = ("blocks.", "relative.", "layer_scale.")
"""Parts of an encoder that are numbered by block; the last two are of dense tasks."""
Group = tuple[float, bool, int]
"""Scale of the learning rate, whether weights decay, and parts of a matrix for Muon."""


def parameter_groups(
    model: nn.Module,
    *,
    weight_decay: float,
    decay_tokens: bool,
    decay_biases: bool = False,
    decay_norms: bool = False,
    layer_decay: float = 1.0,
    depth: int = 0,
    muon: bool = False,
) -> list[dict[str, object]]:
    """Group the trainable parameters by weight decay and by the scale of their learning rate.

    The published PyTorch code decays the cls and mask tokens and trained positions in pre-training
    and not in fine-tuning; the OpenMMLab recipes never decay them. Neither decays norms and biases.

    Args:
        model: the model to train.
        weight_decay: weight decay of the decayed parameters.
        decay_tokens: whether to decay the cls and mask tokens and trained positions.
        decay_biases: whether to decay biases, and other parameters of one dimension but norms.
        decay_norms: whether to decay norms.
        layer_decay: factor of the learning rate from each encoder block to the one before it.
        depth: number of encoder blocks; no effect where `layer_decay` is 1.
        muon: whether to put the matrices of blocks into groups of their own, for `Muon`.

    Returns:
        Groups with `params`, `weight_decay`, `scale`, the factor of the learning rate in every
        step (except of its fixed part, `fixed_rate_at`), and `parts`, the number of matrices that
        Muon splits each parameter into, 0 where AdamW updates it.

    Source: published code, main_pretrain.py and util/lr_decay.py; He et al. 2021, Table 9
    (layer-wise decay).
    """
    of_norms = {p for part in model.modules() if isinstance(part, NORMS) for p in part.parameters()}
    groups: dict[Group, list[nn.Parameter]] = {(1.0, True, 0): [], (1.0, False, 0): []}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        decay = decay_tokens or name.rpartition(".")[2] not in TOKENS
        if parameter.ndim == 1:
            decay = decay_norms if parameter in of_norms else decay_biases
        scale = layer_decay ** (depth + 1 - layer_of(name, depth=depth))
        hidden = muon and parameter.ndim == 2 and "blocks." in name
        parts = (3 if name.endswith("qkv.weight") else 1) if hidden else 0
        groups.setdefault((scale, decay, parts), []).append(parameter)
    return [
        {"params": params, "weight_decay": weight_decay * decay, "scale": scale, "parts": parts}
        for (scale, decay, parts), params in groups.items()
        if params
    ]


def layer_of(name: str, *, depth: int) -> int:
    """Number the layer of a parameter: 0 for embeddings, 1 to `depth` for blocks, then the rest."""
    _, _, own = name.rpartition("encoder.")
    if own.startswith(OF_BLOCKS):
        return int(own.split(".")[1]) + 1
    return 0 if own.startswith(("cls_token", "pos_embed", "patch_embed.")) else depth + 1


def create_optimizer(
    model: nn.Module, optim: OptimConfig, *, layer_decay: float = 1.0, depth: int = 0
) -> torch.optim.Optimizer:
    """Create the optimizer that `optim.name` selects; AdamW uses the fused kernel.

    Args:
        model: its trainable parameters are updated.
        optim: name and settings.
        layer_decay: see `parameter_groups`.
        depth: see `parameter_groups`.
    """
    groups = parameter_groups(
        model,
        weight_decay=optim.weight_decay,
        decay_tokens=optim.decay_tokens,
        decay_biases=optim.decay_biases,
        decay_norms=optim.decay_norms,
        layer_decay=layer_decay,
        depth=depth,
        muon=optim.name == "muon",
    )
    if optim.name == "lars":
        return Lars(groups, lr=optim.lr, momentum=optim.betas[0])
    kind = Muon if optim.name == "muon" else torch.optim.AdamW
    return kind(groups, lr=optim.lr, betas=optim.betas, eps=optim.eps, fused=True)


def choose_trained(model: Classifier | Segmenter | Detector, train_blocks: float | None) -> None:
    """Set `requires_grad` of each parameter for full or partial fine-tuning, in place.

    Args:
        model: its head and last norm are always trained; the paper does not specify the last
            norm.
        train_blocks: number of last blocks to train, with what a dense task adds to them; 0.5 for
            the MLP of the last one with its norm; none: everything, including the positions.

    Source: He et al. 2021, section 4.3 and Figure 9; published code, models_vit.py (positions
    are trained).
    """
    model.requires_grad_(True)  # noqa: FBT003
    if train_blocks is None:
        return
    encoder = model.encoder
    encoder.requires_grad_(False)  # noqa: FBT003
    if isinstance(model, Classifier):
        model.encoder.norm.requires_grad_(True)  # noqa: FBT003
    if train_blocks == 0.5:
        block = list(encoder.blocks)[-1]
        trained = [block.norm2, block.mlp]
    else:
        numbered = [getattr(encoder, part[:-1], ()) for part in OF_BLOCKS]
        first = encoder.config.depth - int(train_blocks)
        trained = [part for parts in numbered for part in [*parts][first:]]
    for part in trained:
        assert isinstance(part, nn.Module)
        part.requires_grad_(True)  # noqa: FBT003
