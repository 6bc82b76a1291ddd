"""A masked autoencoder and its data as a textbook would write them: the peer of the benchmark.

Every image goes through torchvision's transforms by itself, every patch is projected, the
tokens are unshuffled for the decoder, every patch is predicted, and the loss is masked.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from mae.config.model import ModelConfig
from mae.config.objective import ObjectiveConfig
from mae.model.positions import sincos_positions


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        B, T, D = x.shape
        q, k, v = self.qkv(x).reshape(B, T, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        x = F.scaled_dot_product_attention(q, k, v)
        return self.proj(x.transpose(1, 2).reshape(B, T, D))


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, heads)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class TextbookMAE(nn.Module):
    """The method as the paper describes it, for square grey or colour images."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        D, E, p = config.width, config.decoder_width, config.patch_size
        self.config = config
        self.proj = nn.Conv2d(config.channels, D, kernel_size=p, stride=p)
        self.cls_token = nn.Parameter(torch.randn(1, 1, D) * 0.02)
        self.mask_token = nn.Parameter(torch.randn(1, 1, E) * 0.02)
        self.pos = nn.Parameter(sincos_positions(D, config.grid), requires_grad=False)
        self.decoder_pos = nn.Parameter(sincos_positions(E, config.grid), requires_grad=False)
        self.blocks = nn.ModuleList(Block(D, config.num_heads) for _ in range(config.depth))
        self.norm = nn.LayerNorm(D, eps=1e-6)
        self.embed = nn.Linear(D, E)
        self.decoder_blocks = nn.ModuleList(
            Block(E, config.decoder_heads) for _ in range(config.decoder_depth)
        )
        self.decoder_norm = nn.LayerNorm(E, eps=1e-6)
        self.pred = nn.Linear(E, config.patch_values)

    def forward(self, images: Tensor, noise: Tensor) -> Tensor:
        B, C, H, W = images.shape
        p, (h, w), L = self.config.patch_size, self.config.grid, self.config.num_patches
        x = self.proj(images).flatten(2).transpose(1, 2) + self.pos[:, 1:]
        keep = int(L * (1 - ObjectiveConfig().mask_ratio))
        ids_shuffle = noise.argsort(dim=1)
        ids_restore = ids_shuffle.argsort(dim=1)
        ids_keep = ids_shuffle[:, :keep, None].expand(-1, -1, x.shape[-1])
        mask = torch.ones(B, L, device=images.device)
        mask[:, :keep] = 0
        mask = mask.gather(1, ids_restore)
        cls = (self.cls_token + self.pos[:, :1]).expand(B, -1, -1)
        x = torch.cat([cls, x.gather(1, ids_keep)], dim=1)
        for block in self.blocks:
            x = block(x)
        x = self.embed(self.norm(x))
        tokens = torch.cat([x[:, 1:], self.mask_token.expand(B, L - keep, -1)], dim=1)
        tokens = tokens.gather(1, ids_restore[..., None].expand(-1, -1, x.shape[-1]))
        x = torch.cat([x[:, :1], tokens], dim=1) + self.decoder_pos
        for block in self.decoder_blocks:
            x = block(x)
        pred = self.pred(self.decoder_norm(x))[:, 1:]
        target = images.reshape(B, C, h, p, w, p).permute(0, 2, 4, 3, 5, 1).reshape(B, L, -1)
        mean, var = target.mean(-1, keepdim=True), target.var(-1, keepdim=True)
        target = (target - mean) / (var + 1e-6).sqrt()
        loss = ((pred - target) ** 2).mean(-1)
        return (loss * mask).sum() / mask.sum()


class Images(Dataset[Tensor]):
    """Arrays through the usual per-image transforms."""

    def __init__(self, images: NDArray[np.uint8], *, mean: float, std: float) -> None:
        self.images = images
        self.transform = transforms.Compose(
            [
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize((mean,), (std,)),
            ]
        )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.transform(Image.fromarray(self.images[index, :, :, 0]))


def textbook_batches(dataset: Images, *, batch: int, workers: int) -> Iterator[Tensor]:
    """Yield batches without end, epoch after epoch."""
    loader = DataLoader(
        dataset,
        batch_size=batch,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        persistent_workers=workers > 0,
    )
    while True:
        yield from loader
