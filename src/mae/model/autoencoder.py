"""The masked autoencoder: mask, encode, decode, reconstruction loss."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from mae.config.model import ModelConfig
from mae.config.objective import ObjectiveConfig
from mae.errors import ShapeError
from mae.model.decoder import Decoder
from mae.model.encoder import Encoder
from mae.model.masking import gather, random_masking
from mae.model.normalize import require_finite
from mae.model.patches import patch_grid, patchify, unpatchify


class Output(NamedTuple):
    """Output of a training forward pass."""

    loss: Tensor
    """Mean squared error over the hidden patches, a scalar."""
    mask: Tensor
    """B L bool: True where hidden."""


class Reconstruction(NamedTuple):
    """Predicted patches and the images filled in with them."""

    pred: Tensor
    """B L P: every patch predicted, in target space (normalised per patch if so trained)."""
    mask: Tensor
    """B L bool: True where hidden."""
    images: Tensor
    """B C H W, normalised as the input, with the hidden patches filled in."""


class MaskedAutoencoder(nn.Module):
    """Masked autoencoder (He et al. 2021): encode visible patches, reconstruct hidden ones."""

    def __init__(self, config: ModelConfig, objective: ObjectiveConfig | None = None) -> None:
        super().__init__()
        self.config = config
        self.objective = objective or ObjectiveConfig()
        self.objective.require_grid(config.grid)
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)

    def forward(self, images: Tensor, *, noise: Tensor) -> Output:
        """Return the reconstruction loss of the patches hidden by `noise`.

        Args:
            images: B C H W float, normalised; H and W multiples of the patch size.
            noise: B L in [0, 1); the smallest `K = L (1 - mask_ratio)` of each image are kept.

        Raises:
            ShapeError: for a wrong size, channel count or noise.
            ConfigError: for images so small that the mask ratio keeps or hides no patch.
        """
        grid = self.grid_of(images, per_patch=noise)
        masking = random_masking(noise, num_keep=self.objective.num_keep(noise.shape[1]))
        latent = self.encoder(images, masking.ids_keep)  # B 1+K D
        pred = self.decoder(latent, masking, grid=grid)  # B L-K P
        target = self.target(gather(self.patches(images), masking.ids_hidden))  # B L-K P
        # Each image hides the same number, so the plain mean equals the published masked mean.
        # Under autocast the prediction is bf16; the error is computed in the target's float32.
        return Output((pred.to(target.dtype) - target).square().mean(), masking.mask)

    def target(self, patches: Tensor) -> Tensor:
        """Return the target: pixels, with `normalize_target` normalised per patch.

        Source: He et al. 2021, section 3; as in the published code (models_mae.py), the variance
        is unbiased and eps is inside the square root.
        """
        if not self.objective.normalize_target:
            return patches
        centred, std = self._centred(patches)
        return centred / std

    def to_pixels(self, pred: Tensor, *, patches: Tensor) -> Tensor:
        """Invert `target`: predictions B L P to pixels, given the true patches B L P."""
        if not self.objective.normalize_target:
            return pred
        centred, std = self._centred(patches)
        return pred * std + (patches - centred)

    def _centred(self, patches: Tensor) -> tuple[Tensor, Tensor]:
        """Return patches less their means, B L P, and the std that targets are divided by, B L 1.

        On a CPU `torch.var_mean` takes eight times as long.
        """
        centred = patches - patches.mean(dim=-1, keepdim=True)
        centred = centred - centred.mean(dim=-1, keepdim=True)  # the rounding of a flat patch
        variance = centred.square().sum(dim=-1, keepdim=True) / (patches.shape[-1] - 1)
        return centred, (variance + self.objective.target_eps).sqrt()

    @torch.inference_mode()
    def reconstruct(
        self, images: Tensor, *, noise: Tensor | None = None, mask: Tensor | None = None
    ) -> Reconstruction:
        """Reconstruct the patches hidden by `noise` or by an explicit `mask`.

        A model trained on normalised pixels predicts each patch up to its mean and std; the
        filled-in images take both from the hidden patch itself. State this beside the images.

        Args:
            images: B C H W float, normalised.
            noise: B L in [0, 1).
            mask: B L or B h w bool, True = hidden; images may hide different numbers.

        Raises:
            ShapeError: for a wrong size, or a mask that hides all or none of an image's patches.
            DataError: for non-finite pixels.
        """
        if (noise is None) == (mask is None):
            raise ShapeError("reconstruct: expected either noise or a mask; give one of them")
        require_finite(images)
        order = mask.flatten(1).float() if mask is not None else noise
        assert order is not None
        grid = self.grid_of(images, per_patch=order)
        if mask is not None and mask.ndim == 3 and mask.shape[1:] != grid:
            raise ShapeError(
                f"mask: got a grid of {tuple(mask.shape[1:])}, expected {grid}, the patches along "
                "height and width; transpose it"
            )
        L = order.shape[1]
        if mask is None:
            keep = [self.objective.num_keep(L)] * len(images)
        else:
            keep = (L - mask.flatten(1).sum(dim=1)).tolist()
        if not all(0 < k < L for k in keep):
            raise ShapeError("mask: expected each image to hide some patches and show some")
        if len(set(keep)) == 1:
            pred, hidden = self.predict(images, order, num_keep=keep[0], grid=grid)
        else:
            each = [
                self.predict(images[i : i + 1], order[i : i + 1], num_keep=k, grid=grid)
                for i, k in enumerate(keep)
            ]
            pred, hidden = (torch.cat(parts) for parts in zip(*each, strict=True))
        return Reconstruction(pred, hidden, self._fill(images, pred, hidden, grid=grid))

    def normalize(self, images: Tensor) -> Tensor:
        """Normalise stored pixel values B C H W for the network, on their own device."""
        return self.encoder.normalize(images)

    def patches(self, images: Tensor) -> Tensor:
        """Cut images into flattened patches: B C H W to B L P."""
        return patchify(images, patch_size=self.config.patch_size)

    def grid_of(self, images: Tensor, *, per_patch: Tensor) -> tuple[int, int]:
        """Return the patch grid of images; check that noise or mask has one value per patch."""
        grid = patch_grid(images, patch_size=self.config.patch_size)
        expected = (len(images), grid[0] * grid[1])
        if per_patch.shape != expected:
            raise ShapeError(
                f"noise or mask: got {tuple(per_patch.shape)}, expected {expected}, one value per "
                "patch of each image"
            )
        return grid

    def predict(
        self, images: Tensor, order: Tensor, *, num_keep: int, grid: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        """Predict every patch from the `num_keep` patches with the smallest `order`, B L.

        Returns:
            B L P in target space, and B L bool, True where hidden.
        """
        masking = random_masking(order, num_keep=num_keep)
        latent = self.encoder(images, masking.ids_keep)
        return self.decoder.predict_all(latent, masking, grid=grid).to(images.dtype), masking.mask

    def _fill(self, images: Tensor, pred: Tensor, mask: Tensor, *, grid: tuple[int, int]) -> Tensor:
        patches = self.patches(images)
        pred = self.to_pixels(pred, patches=patches)
        filled = torch.where(mask[..., None], pred.to(patches.dtype), patches)
        return unpatchify(filled, patch_size=self.config.patch_size, grid=grid)
