"""A classifier on a pre-trained encoder."""

from __future__ import annotations

from torch import Tensor, nn

from mae.model.encoder import Encoder
from mae.model.transformer import NORM_EPS


class Classifier(nn.Module):
    """Mean of the patch tokens, a new norm, a linear head.

    The encoder's own last norm is left out and a new one comes after the mean, as published
    for global pooling; the head starts near zero (spec 3.1).
    """

    def __init__(self, encoder: Encoder, *, num_classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.encoder.norm = nn.Identity()  # type: ignore[assignment]
        self.fc_norm = nn.LayerNorm(encoder.config.width, eps=NORM_EPS)
        self.head = nn.Linear(encoder.config.width, num_classes)
        nn.init.trunc_normal_(self.head.weight, std=2e-5)
        nn.init.zeros_(self.head.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Give class scores: B C H W float, normalised, to B num_classes."""
        tokens = self.encoder(images)  # B 1+L D
        return self.head(self.fc_norm(tokens[:, 1:].mean(dim=1)))  # type: ignore[no-any-return]
