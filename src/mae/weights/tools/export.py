"""Export networks to ONNX or torch.export, verified against PyTorch."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from timeit import repeat
from typing import Any, Literal, NamedTuple, Unpack

import torch
from torch import Tensor, nn
from torch.export import Dim

from mae.config.model import ModelConfig
from mae.config.objective import num_keep
from mae.config.serialize import to_dict
from mae.errors import ConfigError, WeightsError
from mae.model.autoencoder import MaskedAutoencoder
from mae.model.classifier import Classifier
from mae.model.encoder import Encoder
from mae.weights.given import Given
from mae.weights.load import open_classifier, open_encoder, open_model
from mae.weights.tools.output import new_output, require_new

Target = Literal["onnx", "torch-export"]
Part = Literal["encoder", "full", "classifier"]
CLOSE = 1e-4  # relative to max(1, largest value); allows for float32 summation order only
NEEDED = ("onnx", "onnxscript", "onnxruntime")
_TIMED = 5
LARGEST_GRID = 256  # maximum patches along a side of an image of dynamic size
_ONE_FILE = 1.8e9  # maximum bytes of values in one file; ONNX files are limited to 2 GiB

Call = Callable[..., Tensor | tuple[Tensor, ...]]


class Exported(NamedTuple):
    """Result of an export and its comparison with PyTorch."""

    path: str
    to: Target
    part: Part
    inputs: dict[str, list[int | str]]
    """Shape of each input, by name; a string is a dynamic size."""
    outputs: dict[str, list[int | str]]
    dynamic: bool
    """Whether height and width are dynamic as well as the batch."""
    largest: float
    """Largest difference from PyTorch over all comparisons, relative to max(1, largest value)."""
    tried: list[list[int]]
    """Image shapes of these comparisons."""
    bytes: int
    seconds: float
    """Latency of one image in the target runtime."""
    eager_seconds: float
    """Latency of one image in PyTorch."""
    threads: int
    notes: list[str]


def export(
    weights: str | Path,
    dst: str | Path,
    *,
    to: Target,
    part: Part = "encoder",
    dynamic: bool = False,
    **given: Unpack[Given],
) -> Exported:
    """Export a network to another runtime, run it there, and compare it with PyTorch.

    The batch size is dynamic. The encoder returns all tokens of unmasked images. The full model
    predicts every patch and draws no random numbers, since the noise is an input. A classifier
    returns its scores, and the description in the file names the classes.

    Args:
        weights: any path that `load_encoder` accepts, `load` for the full model, or a classifier.
        dst: file to create, in an existing folder; .onnx or .pt2.
        to: "onnx" or "torch-export".
        part: "encoder", "full" or "classifier".
        dynamic: make height and width dynamic too; the graph then resizes the positions.
        given: settings that the weights do not say, see `Given`.

    Raises:
        ConfigError: if a required package is missing, or the mask ratio cannot be computed for
            dynamic image sizes.
        WeightsError: if the weights cannot be loaded, `dst` exists or cannot be written, or the
            outputs differ from PyTorch; nothing new is then left at `dst`.
    """
    path = Path(dst)
    _require_place(path, to)
    about: dict[str, object] = {"part": part}
    model: Encoder | MaskedAutoencoder | Classifier
    if part == "classifier":
        (model, about["class_names"]), notes = open_classifier(weights, **given)
    else:
        open_part = open_encoder if part == "encoder" else open_model
        model, notes = open_part(weights, **given)
    case = case_of(model.eval(), dynamic=dynamic)
    about["model"] = to_dict(case.config)
    if isinstance(model, MaskedAutoencoder):
        about["objective"] = to_dict(model.objective)
    with new_output(path) as temporary:
        write = write_onnx if to == "onnx" else write_torch
        write(case, temporary, description=json.dumps(about))
        found = _compare(case, temporary, to=to, name=path)
        size = sum(file.stat().st_size for file in temporary.parent.iterdir())
    return Exported(
        path=str(path), to=to, part=part, inputs=case.inputs, outputs=case.outputs,
        dynamic=dynamic, bytes=size, threads=torch.get_num_threads(), notes=notes, **found
    )  # fmt: skip


def _require_place(path: Path, to: Target) -> None:
    """Reject a destination that cannot be written or verified, before any work."""
    suffix = {"onnx": ".onnx", "torch-export": ".pt2"}[to]
    if path.suffix != suffix:
        raise ConfigError(f"dst: {path.name} ends in {path.suffix!r}, expected {suffix} for {to}")
    missing = [name for name in NEEDED if find_spec(name) is None] if to == "onnx" else []
    if missing:
        raise ConfigError(
            f"export: onnx requires {', '.join(missing)}; pip install 'mae-vision[export]', or use "
            "--to torch-export, which needs nothing more"
        )
    for file in (path, path.with_name(f"{path.name}.data")):
        require_new(file)


@torch.inference_mode()
def _compare(case: Case, file: Path, *, to: Target, name: Path) -> dict[str, Any]:
    """Compare the exported file with PyTorch, for batches of 1 and 3, and other sizes if dynamic.

    Raises:
        WeightsError: if they differ by more than rounding.
    """
    run, largest, tried = _runner(file, to), 0.0, list[list[int]]()
    for batch, grid in case.tries:
        given = case.draw(batch, grid)
        for ours, theirs in zip(_outputs(case.eager, given), _outputs(run, given), strict=True):
            scale = max(1.0, float(ours.float().abs().max()))
            largest = max(largest, float((ours.float() - theirs.float()).abs().max()) / scale)
            if ours.dtype != theirs.dtype or not largest <= CLOSE:  # neither is NaN
                raise WeightsError(
                    f"{name}: not written: it gives other values than PyTorch, {largest:.1e} apart "
                    f"for images of {tuple(given[0].shape)}; please report this"
                )
        tried.append([*given[0].shape])
    one = case.draw(*case.tries[0])
    times = [
        repeat("call(*one)", globals={"call": call, "one": one}, number=1, repeat=1 + _TIMED)[1:]
        for call in (run, case.eager)
    ]
    found = {"largest": largest, "tried": tried}
    return found | {"seconds": median(times[0]), "eager_seconds": median(times[1])}


def _outputs(call: Call, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    found = call(*given)
    return (found,) if isinstance(found, Tensor) else tuple(found)


def _runner(file: Path, to: Target) -> Call:
    if to == "torch-export":
        return torch.export.load(file).module()
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]

    def run(*given: Tensor) -> tuple[Tensor, ...]:
        values = {name: tensor.numpy() for name, tensor in zip(names, given, strict=True)}
        return tuple(torch.from_numpy(found) for found in session.run(None, values))

    return run


class Case(NamedTuple):
    """A network to export."""

    config: ModelConfig
    module: nn.Module
    eager: Call
    """Reference that calls the public function, for the comparison."""
    dims: tuple[dict[int, Any], ...]
    """Dynamic axes of each input."""
    inputs: dict[str, list[int | str]]
    """Shape of each input: numbers, or names of dynamic sizes."""
    outputs: dict[str, list[int | str]]
    tries: list[tuple[int, tuple[int, int]]]
    """Batch sizes and patch grids to compare; the first is one image of the training size."""

    def draw(self, batch: int, grid: tuple[int, int]) -> tuple[Tensor, ...]:
        """Draw random inputs for a batch size and a patch grid."""
        (h, w), p = grid, self.config.patch_size
        of_images, of_noise = (torch.Generator().manual_seed(seed) for seed in (0, 1))
        images = torch.randn(batch, self.config.channels, h * p, w * p, generator=of_images)
        return (images, torch.rand(batch, h, w, generator=of_noise))[: len(self.inputs)]


def case_of(model: Encoder | MaskedAutoencoder | Classifier, *, dynamic: bool) -> Case:
    """Return what to export of a model.

    The encoder maps images B C H W to tokens B 1+L D, unmasked. The full model maps images and
    noise B h w to predictions B L P and mask B L; the noise has the shape of the patch grid, so
    that its size gives that of the images. A classifier maps images to scores B K.

    Args:
        model: an encoder, the full model, or a classifier.
        dynamic: make height and width dynamic, besides the batch.

    Raises:
        ConfigError: if `dynamic` and the number of kept patches cannot be computed with integers
            for every image size.
    """
    config = model.encoder.config if isinstance(model, Classifier) else model.config
    p, (h, w) = config.patch_size, config.grid
    kept = None
    if dynamic and isinstance(model, MaskedAutoencoder):
        kept = _kept_fraction(model.objective.mask_ratio)
    least = 2 if kept is None else _least_grid(kept)
    tries = [(1, (h, w)), (3, (h, w))]
    of_images: dict[int, Any] = {0: Dim("batch", min=1)}
    of_noise = dict(of_images)
    size: list[int | str] = [h * p, w * p]
    grid: list[int | str] = [h, w]
    patches: list[int | str] = [h * w, 1 + h * w]
    if dynamic:
        rows, columns = (Dim(n, min=least, max=LARGEST_GRID) for n in ("rows", "columns"))
        of_images |= {2: p * rows, 3: p * columns}
        of_noise |= {1: rows, 2: columns}
        size, grid = [f"{p} rows", f"{p} columns"], ["rows", "columns"]
        patches = ["rows columns", "1 + rows columns"]
        tries += [(1, (h + 2, max(least, w - 1))), (3, (h + 1, w + 3))]
    inputs = {"images": ["batch", config.channels, *size]}
    if isinstance(model, Encoder):
        outputs = {"tokens": ["batch", patches[1], config.width]}
        return Case(config, model, model, (of_images,), inputs, outputs, tries)
    if isinstance(model, Classifier):
        outputs = {"scores": ["batch", model.head.out_features]}
        return Case(config, model, model, (of_images,), inputs, outputs, tries)

    def eager(images: Tensor, noise: Tensor) -> tuple[Tensor, ...]:
        return model.reconstruct(images, noise=noise.flatten(1))[:2]

    inputs["noise"] = ["batch", *grid]
    outputs = {"pred": ["batch", patches[0], config.patch_values], "mask": ["batch", patches[0]]}
    module = _Full(model, kept=kept).eval()
    return Case(config, module, eager, (of_images, of_noise), inputs, outputs, tries)


class _Full(nn.Module):
    def __init__(self, model: MaskedAutoencoder, *, kept: Fraction | None) -> None:
        super().__init__()
        self.model = model
        self.kept = kept

    def forward(self, images: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        h, w = noise.shape[1:]
        # Integer arithmetic, which graphs support for symbolic h and w.
        num_keep = (
            self.model.objective.num_keep(h * w)
            if self.kept is None
            else h * w * self.kept.numerator // self.kept.denominator
        )
        return self.model.predict(images, noise.flatten(1), num_keep=num_keep, grid=(h, w))


def _kept_fraction(mask_ratio: float) -> Fraction:
    """Return the kept fraction of patches for which integer and float arithmetic agree."""
    kept = Fraction(1 - mask_ratio).limit_denominator(10_000)
    for L in range(4, LARGEST_GRID**2 + 1):
        if L * kept.numerator // kept.denominator != num_keep(L, mask_ratio):
            raise ConfigError(
                f"mask_ratio: what {mask_ratio} keeps of {L} patches cannot be counted in whole "
                "numbers; export without --dynamic, or the encoder alone"
            )
    return kept


def _least_grid(kept: Fraction) -> int:
    """Return the smallest edge of a square grid with at least one kept and one masked patch."""
    return next(n for n in range(2, LARGEST_GRID) if 0 < int(n * n * kept) < n * n)


def write_torch(case: Case, path: Path, *, description: str) -> None:
    """Write a torch.export program, with a description as an extra file inside."""
    example = case.draw(*case.tries[-1])  # of a size without special meaning to the network
    program = torch.export.export(case.module, example, dynamic_shapes=case.dims, strict=False)
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
            case.draw(*case.tries[-1]),
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
