"""PSNR of reconstructed hidden patches, beside bilinear in-fill and mean-colour baselines."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mae.model.autoencoder import MaskedAutoencoder, Reconstruction
from mae.model.normalize import denormalize_pixels
from mae.model.patches import unpatchify

MODEL, IN_FILL, MEAN_COLOUR = "model", "bilinear in-fill", "mean colour"
ROUNDS = 10  # of smoothing; on Fashion-MNIST worth 1.4 dB, 20 more another 0.2 dB
LEAST_ERROR = 1e-12  # 120 dB, so that a perfect reconstruction has a finite PSNR


class HiddenPsnr(NamedTuple):
    """PSNR of hidden pixels, for the model first, then the baselines."""

    psnr: dict[str, float]
    """PSNR in dB by name, from the mean squared error over all hidden pixels of all images."""
    about: str

    def to_dict(self) -> dict[str, object]:
        """Return the contents of results.json."""
        rows = [{"name": name, "psnr": psnr} for name, psnr in self.psnr.items()]
        return {"about": self.about, "rows": rows}


def reconstruct_stored(
    model: MaskedAutoencoder, stored: Tensor, hides: Tensor
) -> tuple[Tensor, Reconstruction]:
    """Reconstruct the hidden patches of stored images on the model's device.

    Args:
        model: it is used in its mode, and not changed.
        stored: B C H W of the stored dtype.
        hides: B L: noise, or a bool mask, True where hidden.

    Returns:
        The images B C H W, normalised, and their reconstruction.

    Raises:
        ShapeError: for images or noise that do not fit the model.
    """
    device = model.encoder.cls_token.device
    images, hides = model.normalize(stored.to(device)), hides.to(device)
    if hides.dtype == torch.bool:
        return images, model.reconstruct(images, mask=hides)
    return images, model.reconstruct(images, noise=hides)


class HiddenErrors(NamedTuple):
    """Errors of the hidden patches of each image."""

    loss: Tensor
    """B float32: the loss of pre-training, in target space."""
    squares: dict[str, Tensor]
    """B float64 by name: summed squared errors of the displayed pixels, 0 to 1."""
    values: int
    """Hidden values of all images."""


@torch.inference_mode()
def hidden_errors(
    model: MaskedAutoencoder, stored: Tensor, hides: Tensor, *, baselines: bool = True
) -> HiddenErrors:
    """Compute the errors of the reconstructed hidden patches, and those of the baselines.

    If the model predicts normalised patches, its reconstruction takes mean and std from the
    hidden patch itself; the in-fill then uses both too, and mean colour the mean.

    Args:
        model: it is used in its mode, and not changed.
        stored: B C H W of the stored dtype.
        hides: what hides their patches, see `reconstruct_stored`.
        baselines: whether to compute those of the baselines.
    """
    images, rebuilt = reconstruct_stored(model, stored, hides)
    hidden = hidden_pixels(rebuilt.mask, model=model, images=images)  # B 1 H W
    truth, squares = _shown(images, model=model), {}
    guesses = _baselines(images, hidden, model=model) if baselines else ()
    for name, guess in ((MODEL, rebuilt.images), *guesses):
        error = (_shown(guess, model=model) - truth).square() * hidden
        squares[name] = error.sum(dim=(1, 2, 3), dtype=torch.float64)
    target = model.target(model.patches(images))
    patch_loss = (rebuilt.pred.to(target.dtype) - target).square().mean(dim=2)  # B L
    loss = (patch_loss * rebuilt.mask).sum(dim=1) / rebuilt.mask.sum(dim=1)
    return HiddenErrors(loss, squares, int(hidden.sum()) * images.shape[1])


def hidden_psnr(model: MaskedAutoencoder, batches: Iterable[tuple[Tensor, Tensor]]) -> HiddenPsnr:
    """Compute the PSNR of the reconstructed hidden patches and of the baselines.

    Args:
        model: used in evaluation mode; not changed.
        batches: stored images B C H W, and what hides their patches, see `hidden_errors`.
    """
    was_training = model.training
    model.eval()
    errors = dict.fromkeys((MODEL, IN_FILL, MEAN_COLOUR), 0.0)
    count = 0
    for stored, hides in batches:
        found = hidden_errors(model, stored, hides)
        count += found.values
        for name, squares in found.squares.items():
            errors[name] += float(squares.sum())
    model.train(was_training)
    psnr = {n: -10 * math.log10(max(error / count, LEAST_ERROR)) for n, error in errors.items()}
    about = f"PSNR in dB over {count:,} hidden test values, clipped to [0, 1]"
    if model.objective.normalize_target:
        about += "; mean and std of each hidden patch are given to all (mean colour: the mean)"
    return HiddenPsnr(psnr, about)


def hidden_pixels(mask: Tensor, *, model: MaskedAutoencoder, images: Tensor) -> Tensor:
    """Expand a patch mask B L to pixels: B 1 H W bool."""
    p, grid = model.config.patch_size, model.grid_of(images, per_patch=mask)
    return mask.view(-1, 1, *grid).repeat_interleave(p, 2).repeat_interleave(p, 3)


def _shown(images: Tensor, *, model: MaskedAutoencoder) -> Tensor:
    """Return displayable pixels, 0 to 1."""
    return denormalize_pixels(images, model.config.pixels).clamp(0, 1)


def _baselines(
    images: Tensor, hidden: Tensor, *, model: MaskedAutoencoder
) -> Iterator[tuple[str, Tensor]]:
    in_fill = fill_in(images, hidden)
    if not model.objective.normalize_target:
        colour = (images * ~hidden).sum(dim=(2, 3)) / (~hidden).sum(dim=(2, 3))  # B C
        yield IN_FILL, in_fill
        yield MEAN_COLOUR, colour[:, :, None, None].expand_as(images)
        return
    patches, (H, W), p = model.patches(images), images.shape[2:], model.config.patch_size
    flat = torch.zeros_like(patches)  # becomes the mean of each patch in `to_pixels`
    for name, pred in ((IN_FILL, model.target(model.patches(in_fill))), (MEAN_COLOUR, flat)):
        guess = model.to_pixels(pred, patches=patches)
        yield name, unpatchify(guess, patch_size=p, grid=(H // p, W // p))


def fill_in(images: Tensor, hidden: Tensor) -> Tensor:
    """Fill hidden pixels by smooth interpolation of the visible ones.

    Visible pixels are averaged over 2 x 2 cells recursively, until every cell contains some. Then
    each level is upsampled bilinearly into the holes of the next finer one, and the holes are
    smoothed by averaging each pixel's four neighbours `ROUNDS` times.

    Args:
        images: B C H W float; hidden values are ignored.
        hidden: B 1 H W bool; fully hidden images become 0.

    Returns:
        B C H W, equal to `images` where visible.
    """
    H, W = images.shape[2:]
    images = images.masked_fill(hidden, 0)
    if H * W == 1 or not bool(hidden.any()):
        return images
    shares, sums = (
        F.avg_pool2d(plane, 2, ceil_mode=True, count_include_pad=False)
        for plane in ((~hidden).to(images.dtype), images)
    )
    coarse = fill_in(sums / shares.clamp_min(0.1), shares == 0)  # each is 0 or at least 1/4
    # Upsample to twice the size, then crop: an odd edge must not stretch the surface.
    h, w = coarse.shape[2:]
    surface = F.interpolate(coarse, size=(2 * h, 2 * w), mode="bilinear")[..., :H, :W]
    for _ in range(ROUNDS):
        around = F.pad(torch.where(hidden, surface, images), (1, 1, 1, 1), mode="replicate")
        rows, columns = around[..., 1:-1], around[..., 1:-1, :]
        surface = rows[..., :-2, :] + rows[..., 2:, :] + columns[..., :-2] + columns[..., 2:]
        surface = surface / 4
    return torch.where(hidden, surface, images)
