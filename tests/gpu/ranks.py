"""What each process of tests/gpu/test_train.py does: one alone reduces, several gather."""

from __future__ import annotations

import os

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from mae.model.create import create
from mae.parallel.processes import open_communicator
from mae.train.step import pretraining_loss
from tests.gpu.small import MODEL, small_batches

DEVICE = torch.device("cuda", 0)
BACKEND = "cpu:gloo,cuda:nccl"  # as `open_communicator` requests it


def gradients(*, parallel: bool) -> list[torch.Tensor]:
    model = create(MODEL, seed=5).to(DEVICE)
    batch = small_batches(1)[0].to(DEVICE)
    if parallel:
        images = model.normalize(batch.images)
        DistributedDataParallel(model)(images, noise=batch.noise).loss.backward()
    else:
        pretraining_loss(model, batch).backward()
    return [p.grad for p in model.parameters() if p.grad is not None]


def reduce_alone() -> None:
    """Average over one process: whatever NCCL does, the gradients stay."""
    dist.init_process_group(BACKEND)
    for found, expected in zip(gradients(parallel=True), gradients(parallel=False), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    total = torch.tensor([3.0], device=DEVICE)
    dist.all_reduce(total)
    assert total.item() == 3.0
    dist.destroy_process_group()
    print("reduced by nccl", flush=True)


def gather() -> None:
    """Hand over what was computed on the GPU."""
    with open_communicator(timeout_s=60.0) as ranks:
        mine = (torch.arange(4.0, device=DEVICE) * (1 + ranks.process.rank)).sum().item()
        assert ranks.all_gather(mine) == [6.0, 12.0]
        assert "nccl" in dist.get_backend_config()
    print("met beside nccl", flush=True)


if __name__ == "__main__":
    gather() if os.environ["WORLD_SIZE"] == "2" else reduce_alone()
