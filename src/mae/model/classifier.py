"""A classifier on a pre-trained encoder."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from mae.model.encoder import Encoder
from mae.model.onednn_linear import Linear
from mae.model.transformer import drop_scales


class Classifier(nn.Module):
    """One pooled token, a norm, a linear head.

    With "mean", the encoder's own last norm is left out and a new one comes after the mean of
    the patch tokens; with "cls", the cls token comes through the encoder's norm, which is kept.
    The head starts near zero.

    Source: spec 3.1, published code and timm's `global_pool` "avg" and "token".
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        num_classes: int,
        pool: Literal["mean", "cls"] = "mean",
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        width, eps = encoder.config.width, encoder.config.norm_eps
        self.pool = pool
        self.drop_path = drop_path
        self.encoder = encoder
        if pool == "mean":
            self.encoder.norm = nn.Identity()  # type: ignore[assignment]
        # The identity has no tensors, so the names are the published ones for both.
        self.fc_norm = nn.LayerNorm(width, eps=eps) if pool == "mean" else nn.Identity()
        self.head = Linear(width, num_classes)
        nn.init.trunc_normal_(self.head.weight, std=2e-5)
        nn.init.zeros_(self.head.bias)

    def forward(self, images: Tensor, *, drops: Tensor | None = None) -> Tensor:
        """Give class scores.

        Args:
            images: B C H W float, normalised.
            drops: B 2*depth uniform in [0, 1), which branches are dropped in training (see
                `drop_scales`); None: none.

        Returns:
            B num_classes.
        """
        scales = None if drops is None else drop_scales(drops, rate=self.drop_path)
        tokens = self.encoder(images, scales=scales)  # B 1+L D
        pooled = tokens[:, 1:].mean(dim=1) if self.pool == "mean" else tokens[:, 0]
        return self.head(self.fc_norm(pooled))  # type: ignore[no-any-return]
