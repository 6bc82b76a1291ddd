"""Export graphs of the encoder and the full model: inputs, outputs and dynamic sizes."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.export import Dim

from mae.config.model import ModelConfig
from mae.config.objective import num_keep
from mae.errors import ConfigError
from mae.model.autoencoder import MaskedAutoencoder
from mae.model.encoder import Encoder

Run = Callable[..., tuple[Tensor, ...]]

LARGEST_GRID = 256  # maximum patches along a side of an image of dynamic size
_ONE_FILE = 1.8e9  # maximum bytes of values in one file; ONNX files are limited to 2 GiB


class Case(NamedTuple):
    """A network to export."""

    config: ModelConfig
    module: nn.Module
    eager: Run
    """Reference that calls the public function, for the comparison."""
    draw: Callable[[int, tuple[int, int]], tuple[Tensor, ...]]
    """Returns random inputs for a batch size and a patch grid."""
    dims: tuple[dict[int, Any], ...]
    """Dynamic axes of each input."""
    inputs: dict[str, list[int | str]]
    outputs: dict[str, list[int | str]]
    tries: list[tuple[int, tuple[int, int]]]
    """Batch sizes and patch grids to compare; the first is one image of the training size."""

    @property
    def example(self) -> tuple[Tensor, ...]:
        """Inputs to trace, of a size without special meaning to the network."""
        return self.draw(*self.tries[-1])


def of_encoder(encoder: Encoder, *, dynamic: bool) -> Case:
    """Return the encoder case: images B C H W to tokens B 1+L D, unmasked."""
    sizes = _Sizes(encoder.config, dynamic=dynamic)
    return Case(
        config=encoder.config,
        module=encoder,
        eager=lambda images: (encoder(images),),
        draw=lambda batch, grid: (_images(encoder.config, batch, grid),),
        dims=(sizes.of_images,),
        inputs={"images": sizes.images},
        outputs={"tokens": ["batch", sizes.tokens, encoder.config.width]},
        tries=sizes.tries,
    )


def of_full(model: MaskedAutoencoder, *, dynamic: bool) -> Case:
    """Return the full case: images B C H W and noise B h w to predictions B L P and mask B L.

    The noise has the shape of the patch grid, so that its size gives that of the images.

    Raises:
        ConfigError: if `dynamic` and the number of kept patches cannot be computed with integers
            for every image size.
    """
    config = model.config
    share = _share_kept(model.objective.mask_ratio) if dynamic else None
    sizes = _Sizes(config, dynamic=dynamic, share=share)

    def eager(images: Tensor, noise: Tensor) -> tuple[Tensor, ...]:
        return model.reconstruct(images, noise=noise.flatten(1))[:2]

    def draw(batch: int, grid: tuple[int, int]) -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(1)
        return _images(config, batch, grid), torch.rand(batch, *grid, generator=generator)

    return Case(
        config=config,
        module=_Full(model, share=share).eval(),
        eager=eager,
        draw=draw,
        dims=(sizes.of_images, sizes.of_noise),
        inputs={"images": sizes.images, "noise": sizes.noise},
        outputs={
            "pred": ["batch", sizes.patches, config.patch_values],
            "mask": ["batch", sizes.patches],
        },
        tries=sizes.tries,
    )


class _Full(nn.Module):
    def __init__(self, model: MaskedAutoencoder, *, share: Fraction | None) -> None:
        super().__init__()
        self.model = model
        self.share = share

    def forward(self, images: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        h, w = noise.shape[1:]
        # Integer arithmetic, which graphs support for symbolic h and w.
        kept = (
            self.model.objective.num_keep(self.model.config.num_patches)
            if self.share is None
            else h * w * self.share.numerator // self.share.denominator
        )
        return self.model.predict(images, noise.flatten(1), num_keep=kept, grid=(h, w))


class _Sizes:
    """Sizes of inputs and outputs: numbers, or names of dynamic sizes."""

    def __init__(
        self, config: ModelConfig, *, dynamic: bool, share: Fraction | None = None
    ) -> None:
        p, (h, w) = config.patch_size, config.grid
        batch = Dim("batch", min=1)
        least = 2 if share is None else _least_grid(share)
        rows, columns = (Dim(n, min=least, max=LARGEST_GRID) for n in ("rows", "columns"))
        self.of_images: dict[int, Any] = {0: batch}
        self.of_noise: dict[int, Any] = {0: batch}
        if dynamic:
            self.of_images |= {2: p * rows, 3: p * columns}
            self.of_noise |= {1: rows, 2: columns}
        H, W = config.image_size
        size: list[int | str] = [f"{p} rows", f"{p} columns"] if dynamic else [H, W]
        grid: list[int | str] = ["rows", "columns"] if dynamic else [h, w]
        self.images = ["batch", config.channels, *size]
        self.noise = ["batch", *grid]
        self.patches: int | str = "rows columns" if dynamic else h * w
        self.tokens: int | str = "1 + rows columns" if dynamic else 1 + h * w
        self.tries = [(1, (h, w)), (3, (h, w))]
        if dynamic:
            self.tries += [(1, (h + 2, max(least, w - 1))), (3, (h + 1, w + 3))]


def _images(config: ModelConfig, batch: int, grid: tuple[int, int]) -> Tensor:
    size = (grid[0] * config.patch_size, grid[1] * config.patch_size)
    generator = torch.Generator().manual_seed(0)
    return torch.randn(batch, config.channels, *size, generator=generator)


def _share_kept(mask_ratio: float) -> Fraction:
    """Return the kept fraction of patches for which integer and float arithmetic agree."""
    share = Fraction(1 - mask_ratio).limit_denominator(10_000)
    wrong = [
        L
        for L in range(4, LARGEST_GRID**2 + 1)
        if L * share.numerator // share.denominator != num_keep(L, mask_ratio)
    ]
    if wrong:
        raise ConfigError(
            f"mask_ratio: what {mask_ratio} keeps of {wrong[0]} patches cannot be counted "
            "in whole numbers; export without --dynamic, or the encoder alone"
        )
    return share


def _least_grid(share: Fraction) -> int:
    """Return the smallest edge of a square grid with at least one kept and one masked patch."""
    return next(
        edge for edge in range(2, LARGEST_GRID) if 0 < int(edge * edge * share) < edge * edge
    )


def write_torch(case: Case, path: Path, *, description: str) -> None:
    """Write a torch.export program, with a description as an extra file inside."""
    program = torch.export.export(case.module, case.example, dynamic_shapes=case.dims, strict=False)
    torch.export.save(program, path, extra_files={"mae.json": description})


def write_onnx(case: Case, path: Path, *, description: str) -> None:
    """Write an ONNX file with a description as metadata; large values go to a second file."""
    from onnxscript import opset18 as op

    def stable_sort(values: Any, *, stable: bool, dim: int, descending: bool = False) -> Any:
        # ONNX has no sort; its TopK returns equal values in index order, which makes it stable.
        place: Any = op.Constant(value_ints=[dim])
        count = op.Gather(op.Shape(values), place)
        return op.TopK(values, count, axis=dim, largest=int(descending), sorted=1)

    with warnings.catch_warnings():
        # Two inputs share an axis on purpose; the exporter warns that its name is already used.
        warnings.filterwarnings("ignore", message="# The axis name: .* will not be used")
        program = torch.onnx.export(
            case.module,
            case.example,
            dynamo=True,
            dynamic_shapes=case.dims,
            input_names=list(case.inputs),
            output_names=list(case.outputs),
            custom_translation_table={torch.ops.aten.sort.stable: stable_sort},
            verbose=False,
        )
    assert program is not None
    program.model.metadata_props["mae"] = description
    values = sum(tensor.nbytes for tensor in case.module.state_dict().values())
    program.save(path, external_data=values > _ONE_FILE)
