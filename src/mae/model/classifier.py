"""Image classifier on a pre-trained encoder."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from mae.model.encoder import Encoder
from mae.model.onednn_linear import Linear
from mae.model.transformer import drop_scales


class Classifier(nn.Module):
    """Encoder, pooling, norm and linear head.

    With "mean", a new norm after the mean of the patch tokens replaces the encoder's last norm;
    with "cls", the encoder's norm is kept and applied to the cls token. The head is initialised
    near zero.

    Source: published code, models_vit.py and main_finetune.py; timm's `global_pool` "avg" and
    "token".
    """

    class_names: tuple[str, ...] = ()
    """In the order of the scores; empty if unknown. Not part of the state."""

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
        # The identity has no tensors, so both pools keep the published names.
        self.fc_norm = nn.LayerNorm(width, eps=eps) if pool == "mean" else nn.Identity()
        self.head = Linear(width, num_classes)
        nn.init.trunc_normal_(self.head.weight, std=2e-5)
        nn.init.zeros_(self.head.bias)

    def forward(self, images: Tensor, *, drops: Tensor | None = None) -> Tensor:
        """Return class scores.

        Args:
            images: B C H W float, normalised.
            drops: B 2*depth uniform in [0, 1), draws that select the branches dropped in training
                (see `drop_scales`); None: none.

        Returns:
            B num_classes.
        """
        scales = None if drops is None else drop_scales(drops, rate=self.drop_path)
        tokens = self.encoder(images, scales=scales)  # B 1+L D
        pooled = tokens[:, 1:].mean(dim=1) if self.pool == "mean" else tokens[:, 0]
        return self.head(self.fc_norm(pooled))  # type: ignore[no-any-return]
