"""Measure the bytes that a forward pass keeps for the backward pass, as autograd counts them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from mae.model.autoencoder import MaskedAutoencoder


def saved_bytes(
    model: MaskedAutoencoder, images: Tensor, noise: Tensor, *, half: bool = False
) -> float:
    """Measure the bytes that the forward pass of a training step keeps for the backward pass.

    Args:
        model: the model, on the CPU; sizes are the same on every device.
        images: B C H W of the stored type.
        noise: B L.
        half: whether to run under autocast to bf16, which also keeps a copy of each weight.

    Returns:
        Bytes per image, without parameters.
    """

    def compute() -> Tensor:
        return model(model.normalize(images), noise=noise).loss

    return kept_for_backward(model, compute, half=half) / len(images)


def kept_for_backward(
    model: nn.Module, compute: Callable[[], Tensor], *, half: bool = False
) -> int:
    """Measure the bytes that a forward pass keeps for the backward pass, without parameters."""
    own = {tensor.untyped_storage().data_ptr() for tensor in model.state_dict().values()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # the tensor itself would keep its own graph alive

    saving = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with saving, torch.autocast("cpu", torch.bfloat16, half):
        loss = compute()
    assert loss.grad_fn is not None  # saved tensors are still alive, so addresses are unique
    return sum(kept.values())
