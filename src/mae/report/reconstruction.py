"""Draw reconstructions: original, masked, predicted and pasted images, with captions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from textwrap import wrap
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from mae.atomic import write_atomic
from mae.config.model import ModelConfig
from mae.config.objective import ObjectiveConfig
from mae.errors import DataError
from mae.evaluation.reconstruction import hidden_pixels, reconstruct_stored
from mae.model.autoencoder import MaskedAutoencoder
from mae.model.normalize import denormalize_pixels
from mae.model.patches import unpatchify
from mae.report.figures import png_bytes

Pixels = NDArray[np.uint8]
Item = TypeVar("Item")

STAGES = {
    "original": "original",
    "masked": "what the model sees",
    "prediction": "prediction of every patch",
    "pasted": "prediction, visible patches pasted",
}
"""The four stages drawn of each image, in order, with their labels."""

EXTREMES = "extremes.png"
"""Drawing of the images of a health check with the largest and the smallest loss."""

GREY = 128  # hidden patches
LEAST_EDGE = 112  # smaller images are enlarged by repeating pixels
GAP = 4
LINE, LETTER = 15, 7  # height of a line and width of a letter of the caption


class Panels(NamedTuple):
    """Drawn reconstructions and their caption."""

    cells: Pixels
    """B 4 H W 3: each image in the four stages."""
    caption: str
    """What is drawn where it differs from the pixels that the model predicts."""


def reconstruction_panels(model: MaskedAutoencoder, images: Tensor, *, hides: Tensor) -> Panels:
    """Reconstruct the hidden patches of images and draw every stage.

    Args:
        model: on any device.
        images: B C H W of the stored dtype.
        hides: B L, noise or a mask, see `reconstruct_stored`.

    Raises:
        ShapeError: for images or noise that do not fit the model.
    """
    config = model.config
    normalized, result = reconstruct_stored(model, images, hides)
    p, grid = config.patch_size, model.grid_of(normalized, per_patch=result.mask)
    pred = model.to_pixels(result.pred, patches=model.patches(normalized))
    predicted = denormalize_pixels(unpatchify(pred, patch_size=p, grid=grid), config.pixels)
    stored = images.float() / config.pixels.full_range
    original, prediction = _for_display(stored, predicted.cpu(), config)
    hidden = hidden_pixels(result.mask, model=model, images=normalized)
    is_hidden = hidden.permute(0, 2, 3, 1).cpu().numpy()  # B H W 1
    # Select drawn pixels, so that visible patches equal the original bit by bit.
    masked = np.where(is_hidden, np.uint8(GREY), original)
    pasted = np.where(is_hidden, prediction, original)
    cells = np.stack([original, masked, prediction, pasted], axis=1)
    return Panels(cells, caption_of(config, model.objective))


def _for_display(stored: Tensor, predicted: Tensor, config: ModelConfig) -> tuple[Pixels, Pixels]:
    """Convert two B C H W in [0, 1] to B H W 3 pixels, both scaled to the range of the first."""
    C = config.channels
    shown = [0, 0, 0] if C < 3 else [0, 1, 2]
    stored, predicted = stored[:, shown], predicted[:, shown]
    if config.pixels.dtype == "uint8":
        low, high = torch.zeros(1), torch.ones(1)
    else:
        low, high = (f(stored, dim=(1, 2, 3), keepdim=True) for f in (torch.amin, torch.amax))

    def pixels(values: Tensor) -> Pixels:
        scaled = (values - low) / (high - low).clamp_min(1e-12) * 255
        # A diverged model may predict NaN; draw it as 0.
        whole = scaled.nan_to_num(0.0).clamp(0, 255).round().to(torch.uint8)
        return whole.permute(0, 2, 3, 1).numpy()

    return pixels(stored), pixels(predicted)


def caption_of(config: ModelConfig, objective: ObjectiveConfig) -> str:
    """Describe where a drawing differs from the pixels that a model predicts."""
    parts = []
    if objective.normalize_target:
        parts.append(
            "This model predicts pixels normalised by their own patch: the mean and std of "
            "each drawn patch are those of the original, hidden ones included."
        )
    if config.channels == 2:
        parts.append("Of 2 channels the first is drawn.")
    elif config.channels > 3:
        parts.append(f"Of {config.channels} channels the first three are drawn.")
    if config.pixels.dtype != "uint8":
        parts.append("Brightness is stretched to the range of each original.")
    return " ".join(parts)


def evenly(items: Sequence[Item], most: int) -> list[Item]:
    """Choose at most `most` items, evenly spread, including the first and the last."""
    count = min(most, len(items))
    return [items[round(i * (len(items) - 1) / max(1, count - 1))] for i in range(count)]


def tile(cells: Pixels) -> Image.Image:
    """Tile cells R K H W 3 in R rows and K columns with gaps; small cells are enlarged."""
    scale = -(-LEAST_EDGE // min(cells.shape[2:4]))
    cells = cells.repeat(scale, axis=2).repeat(scale, axis=3)
    R, K, H, W, _ = cells.shape
    sheet = np.full((R, K, H + GAP, W + GAP, 3), 255, dtype=np.uint8)
    sheet[:, :, :H, :W] = cells
    flat = sheet.transpose(0, 2, 1, 3, 4).reshape(R * (H + GAP), K * (W + GAP), 3)
    return Image.fromarray(flat)


def reconstruction_strip(panels: Panels) -> Image.Image:
    """Draw one row of four stages per image, with the caption below."""
    sheet = tile(panels.cells)
    text = f"From left to right: {'; '.join(STAGES.values())}. {panels.caption}"
    lines = wrap(text, sheet.width // LETTER)
    size = (sheet.width + GAP, GAP + sheet.height + LINE * len(lines) + GAP)
    strip = Image.new("RGB", size, "white")
    strip.paste(sheet, (GAP, GAP))
    font = ImageFont.load_default(LINE * 0.8)
    place = (GAP, GAP + sheet.height)
    ImageDraw.Draw(strip).text(place, "\n".join(lines), fill="black", font=font)
    return strip


def save_progress_image(
    model: MaskedAutoencoder, images: Tensor, noise: Tensor, path: Path
) -> None:
    """Draw the current reconstructions of images: one column per image, one row per stage.

    Args:
        model: model in training; it is left unchanged.
        images: B C H W of the stored dtype.
        noise: B L.
        path: PNG to write atomically; its folder is created.

    Raises:
        ConfigError: if it cannot be written.
    """
    cells = reconstruction_panels(model, images, hides=noise).cells
    write_atomic(path, png_bytes(tile(cells.swapaxes(0, 1))))


def read_stages(path: Path) -> dict[str, Image.Image]:
    """Read a progress image and cut it into its stages.

    Raises:
        DataError: if it is not an image.
    """
    try:
        with Image.open(path) as sheet:
            row = sheet.height // len(STAGES)
            return {
                stage: sheet.crop((0, i * row, sheet.width - GAP, (i + 1) * row - GAP))
                for i, stage in enumerate(STAGES)
            }
    except OSError as error:
        raise DataError(f"{path}: cannot be read as an image; delete it") from error
