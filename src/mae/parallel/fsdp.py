"""Parameters, gradients and moments divided among ranks: FSDP2, `fully_shard`.

Each rank keeps a part of every parameter (rows of its first axis) as a DTensor. A block is gathered
for its forward and its backward pass and dropped after each; its gradients are averaged over the
ranks, each of which keeps its part of them. Optimizers then update the parts.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from mae.parallel.exchange import GradientExchange


def shard(
    model: nn.Module, blocks: Iterable[nn.Module], *, device: torch.device, bf16: bool
) -> nn.Module:
    """Divide the parameters of a model among all ranks, in place; a collective.

    Args:
        model: on the host, the same on all ranks; rank 0's parameters count. Its shards are moved
            to the device, so that the whole of it is never there.
        blocks: modules of it that are gathered one at a time; the rest is gathered as one.
        device: of this rank.
        bf16: whether to gather the matrices of blocks in bf16. The shards and the sums of
            gradients stay float32, and so do norms and the parameters outside of blocks.

    Returns:
        The model without its values, on the meta device, for `gather`.
    """
    parameters = list(model.parameters())
    empty = (nn.Parameter(p.to("meta"), requires_grad=p.requires_grad) for p in parameters)
    skeleton = copy.deepcopy(model, {id(p): e for p, e in zip(parameters, empty, strict=True)})
    for parameter in parameters:
        dist.broadcast(parameter.detach(), src=0)
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    whole = MixedPrecisionPolicy(cast_forward_inputs=False)
    half = whole
    if bf16:
        half = replace(whole, param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    for block in blocks:
        if bf16:  # as under autocast
            norms: list[nn.Module] = [
                part for part in block.modules() if isinstance(part, nn.LayerNorm)
            ]
            fully_shard(norms, mesh=mesh, mp_policy=whole)
        fully_shard(block, mesh=mesh, mp_policy=half)
    fully_shard(model, mesh=mesh, mp_policy=whole)
    # Torch's caches keep the mesh, and with it the connections of a rank that has left the job, on
    # which the others would wait. Without this entry, the group is found by its name.
    mesh._pg_registry.clear()
    return skeleton


@torch.no_grad()
def gather(model: nn.Module, skeleton: nn.Module, *, keep: bool) -> nn.Module:
    """Return the whole of a sharded model, on its device; a collective.

    Args:
        model: sharded; not changed.
        skeleton: of `shard`; not changed.
        keep: whether this rank wants it; else its result has no values.
    """
    whole, parts = copy.deepcopy(skeleton), dict(model.named_parameters())
    if keep:
        whole.to_empty(device=next(iter(parts.values())).device)
    for name, parameter in whole.named_parameters():
        values: Any = parts[name]
        values = values.full_tensor()
        if keep:
            parameter.copy_(values)
    return whole.train(model.training)


class ShardedExchange(GradientExchange):
    """The exchange of ranks that each hold a part of the model.

    Every pass gathers parameters, so all ranks compute the same number of them. A rank with fewer
    images repeats its last micro-batch, at no weight.

    Args:
        loss: of (model, batch); it calls the model, whose hooks gather the parameters.
        passes: micro-batches of the rank that has most.
        how: as for `GradientExchange`.
    """

    def __init__(self, loss: Callable[..., Tensor], *, passes: int, **how: Any) -> None:
        super().__init__(**how)
        self._loss = loss
        self.passes = passes

    def loss(self, model: nn.Module, batch: object) -> Tensor:
        """See `GradientExchange.loss`."""
        return self._loss(model, batch)

    def add_up(
        self, loss: Tensor, gradients: Sequence[Any], *, reports: int
    ) -> tuple[Tensor, Tensor]:
        """See `GradientExchange.add_up`; the norm is that of all parts, not of this rank's."""
        own = torch.nn.utils.get_total_norm([gradient.to_local() for gradient in gradients])
        total, squares = self._sum(loss, own.square(), reports=reports)
        return total, squares.sqrt()
