"""Reconstruct masked images and draw the results as a .png or an .html page."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, Unpack
from xml.etree.ElementTree import Element

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mae.atomic import write_atomic
from mae.config.model import ModelConfig, refuse_without_effect
from mae.config.objective import MaskKind, ObjectiveConfig
from mae.data.sampling.masks import mask_noise, read_mask
from mae.data.sources.images import Images, open_images
from mae.data.sources.open import open_source
from mae.data.sources.source import FolderSource, Source
from mae.data.types import Log
from mae.errors import ConfigError, DataError
from mae.evaluation.inputs import (
    FeatureSettings,
    evaluation_batches,
    for_inference,
    report_view,
    weights_name,
)
from mae.evaluation.reconstruction import HiddenPsnr, hidden_psnr
from mae.model.autoencoder import MaskedAutoencoder
from mae.progress import Progress
from mae.report.figures import element, image_element, png_bytes
from mae.report.html import html_page
from mae.report.notebook import reduced, rows_table, shown
from mae.report.page import results_table
from mae.report.reconstruction import (
    STAGES,
    Panels,
    evenly,
    reconstruction_panels,
    reconstruction_strip,
    tile,
)
from mae.weights.given import Given
from mae.weights.load import open_model


@shown
class Reconstructed(NamedTuple):
    """A drawing of images that a model reconstructed."""

    out: Path | None
    names: tuple[str, ...]
    """The images drawn, in order."""
    bad: dict[str, str]
    """Reason why an image could not be read, by image name."""
    caption: str
    """What is drawn where it differs from the model's plain prediction."""
    psnr: dict[str, float]
    """PSNR in dB of the model and of the baselines, by name."""
    about: str
    """What was measured."""
    strip: Image.Image
    """A row of four stages per image, with the caption below."""

    def values(self) -> dict[str, object]:
        """Return the values to print."""
        return {name: value for name, value in self._asdict().items() if name != "strip"}

    def html(self) -> Iterator[Element]:
        """Yield the drawing and the measured errors."""
        yield element("div", image_element(reduced(self.strip), "reconstructions"))
        yield rows_table((name, f"{value:.1f} dB") for name, value in self.psnr.items())
        yield element("div", self.about)


def reconstruct(
    weights: str | os.PathLike[str] | MaskedAutoencoder,
    images: Images,
    *,
    out: str | Path | None = "reconstruction.png",
    mask: str | Path | None = None,
    mask_kind: MaskKind | None = None,
    mask_ratio: float | None = None,
    seed: int | None = None,
    count: int = 8,
    device: str = "auto",
    crop_pct: float | None = None,
    quiet: bool = False,
    **given: Unpack[Given],
) -> Reconstructed:
    """Mask patches of images, reconstruct them, and draw both.

    Args:
        weights: whatever `mae.load` takes, with a decoder; a network in memory is not changed.
        images: one or several image files and folders, from each of which some images are taken;
            or what `embed` takes: arrays, tensors, Pillow images.
        out: .png, or .html for a page with the measured errors; none: nothing is written.
        mask: image file of the mask of every image, see `read_mask`; none: drawn for each.
        mask_kind: how the hidden patches are chosen; none: as in training.
        mask_ratio: fraction of the patches that is hidden; none: as in training.
        seed: key of the masks; none: 0.
        count: number of images from each folder, evenly spread.
        device: see `choose_device`.
        crop_pct: fraction of an image that is kept, see `ModelConfig`; none: as in the weights.
        quiet: show no progress and no notes.
        given: settings that the weights do not store, see `Given`.

    Raises:
        MaeError: for whatever the user must change, in one line.
    """
    out, mask = (None if path is None else Path(path) for path in (out, mask))
    paths = _paths(images)
    _require_target(out, [*(paths or ()), *([mask] if mask else [])])
    drawn = {"mask_kind": mask_kind, "mask_ratio": mask_ratio}
    if mask is not None:
        refuse_without_effect("a given --mask", "drawn masks", **drawn, seed=seed)
    with Progress(quiet=quiet) as progress:
        settings = FeatureSettings(device=device, crop_pct=crop_pct, given=given)
        model = _open(weights, settings, log=progress.note)
        sources = _sources(images, paths, model.config, log=progress.note)
    asked: dict[str, Any] = {name: value for name, value in drawn.items() if value is not None}
    if mask_kind is not None and mask_kind != model.objective.mask_kind:
        asked["mask_block"] = ObjectiveConfig().mask_block
    model.objective = replace(model.objective, **asked)
    model.objective.require_grid(model.config.grid)
    stored, names, bad = _read(sources, model, count=count)
    if mask is None:
        ids = np.arange(len(names), dtype=np.int64)
        hides = mask_noise(ids, model.objective, grid=model.config.grid, seed=seed or 0)
    else:
        hides = read_mask(mask, model.config).flatten().expand(len(names), -1)
    panels = reconstruction_panels(model, stored, hides=hides)
    psnr = hidden_psnr(model, [(stored, hides)])
    strip = reconstruction_strip(panels)
    if out is not None:
        title = f"Reconstructions by {weights_name(weights)}"
        is_page = out.suffix == ".html"
        page = html_page(title, _page(panels, names, psnr)) if is_page else png_bytes(strip)
        write_atomic(out, page)
    return Reconstructed(out, tuple(names), bad, panels.caption, psnr.psnr, psnr.about, strip)


def _paths(images: Images) -> Sequence[str | Path] | None:
    """Return the images as paths; None for images in memory and other sources."""
    if isinstance(images, str | Path):
        return [images]
    if not isinstance(images, list | tuple):
        return None
    paths = [image for image in images if isinstance(image, str | Path)]
    return paths if len(paths) == len(images) else None


def _sources(
    images: Images, paths: Sequence[str | Path] | None, config: ModelConfig, *, log: Log
) -> list[Source]:
    if paths is None:
        return [open_images(images, config, log=log)]
    return [
        open_source(path) if Path(path).is_dir() else FolderSource.of_files([path])
        for path in paths
    ]


def _open(
    weights: str | os.PathLike[str] | MaskedAutoencoder, settings: FeatureSettings, *, log: Log
) -> MaskedAutoencoder:
    """Load the network onto its device; of one in memory, a copy whose objective may change."""
    if isinstance(weights, MaskedAutoencoder):
        model = copy.copy(for_inference(weights, settings))
    else:
        model, notes = open_model(weights, crop_pct=settings.crop_pct, **settings.given)
        for note in notes:
            log(note)
    report_view(model.config, log=log)
    return model.to(settings.checked_device()).eval()


def _require_target(out: Path | None, given: Sequence[str | Path]) -> None:
    """Raise for a file that would replace one of those given."""
    if out is None:
        return
    if out.suffix not in (".png", ".html"):
        raise ConfigError(f"out: expected a name ending in .png or .html, got {out}")
    if any(out.exists() and path.exists() and out.samefile(path) for path in map(Path, given)):
        raise ConfigError(f"out: {out} is one of the images; choose another name")


def _read(
    sources: Sequence[Source], model: MaskedAutoencoder, *, count: int
) -> tuple[Tensor, list[str], dict[str, str]]:
    """Read the images in the format the model was trained on: B C H W of the stored dtype."""
    images, names = [], []
    bad: dict[str, str] = {}
    for source in sources:
        for read in evaluation_batches(
            model.encoder, source, evenly(range(len(source)), count), batch=count
        ):
            images.append(read.images)
            names += [source.name(i) for i in read.ids.tolist()]
            bad |= {image.name: image.reason for image in read.bad}
    if not names:
        first = "".join(f"; the first, {name}: {reason}" for name, reason in [*bad.items()][:1])
        raise DataError(f"images: none of {len(bad)} can be read{first}. Name others")
    return torch.cat(images), names, bad


def _page(panels: Panels, names: Sequence[str], psnr: HiddenPsnr) -> Iterator[Element]:
    yield element("p", "From left to right: " + "; ".join(STAGES.values()) + ".")
    yield element("p", panels.caption, class_="quiet")
    for name, cells in zip(names, panels.cells, strict=True):
        image = image_element(tile(cells[None]), f"{name} in four stages")
        yield element("figure", image, element("figcaption", name), class_="strip")
    yield results_table(psnr.to_dict())
