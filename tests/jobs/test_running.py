"""What pre-training and fine-tuning share while they train."""

from __future__ import annotations

import pytest
import torch

from mae.jobs.running import tf32_beside


@pytest.mark.parametrize(
    ("half", "device", "products"),
    [
        ("bf16", "cuda", "high"),
        ("fp16", "cuda", "high"),
        (None, "cuda", "highest"),
        ("bf16", "cpu", "highest"),
    ],
)
def test_tf32_is_for_what_is_left_beside_half_precision_on_a_gpu_alone(
    half: str | None, device: str, products: str
) -> None:
    with pytest.raises(KeyError), tf32_beside(half, torch.device(device)):
        assert torch.get_float32_matmul_precision() == products
        raise KeyError

    assert torch.get_float32_matmul_precision() == "highest"
