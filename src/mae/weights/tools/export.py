"""Export networks to ONNX or torch.export, verified against PyTorch."""

from __future__ import annotations

import json
import time
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any, Literal, NamedTuple, Unpack

import torch
from torch import Tensor

from mae.config.serialize import to_dict
from mae.errors import ConfigError, WeightsError
from mae.weights.given import Given
from mae.weights.load import open_encoder, open_model
from mae.weights.tools import export_graph as graph
from mae.weights.tools.output import new_output, require_new

Target = Literal["onnx", "torch-export"]
Part = Literal["encoder", "full"]
CLOSE = 1e-4  # relative to max(1, largest value); allows for float32 summation order only
NEEDED = ("onnx", "onnxscript", "onnxruntime")
_TIMED = 5


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
    predicts every patch and draws no random numbers, since the noise is an input.

    Args:
        weights: any path that `load_encoder` accepts, or `load` for the full model.
        dst: file to create, in an existing folder; .onnx or .pt2.
        to: "onnx" or "torch-export".
        part: "encoder" or "full".
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
    about: dict[str, Any] = {"part": part}
    if part == "encoder":
        encoder, notes = open_encoder(weights, **given)
        case = graph.of_encoder(encoder.eval(), dynamic=dynamic)
    else:
        model, notes = open_model(weights, **given)
        case = graph.of_full(model.eval(), dynamic=dynamic)
        about["objective"] = to_dict(model.objective)
    about["model"] = to_dict(case.config)
    with new_output(path) as temporary:
        write = graph.write_onnx if to == "onnx" else graph.write_torch
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
            f"export: onnx takes {', '.join(missing)}; pip install 'mae-vision[export]', or use "
            "--to torch-export, which needs nothing more"
        )
    for file in (path, path.with_name(f"{path.name}.data")):
        require_new(file)


@torch.inference_mode()
def _compare(case: graph.Case, file: Path, *, to: Target, name: Path) -> dict[str, Any]:
    """Compare the exported file with PyTorch, for batches of 1 and 3, and other sizes if dynamic.

    Raises:
        WeightsError: if they differ by more than rounding.
    """
    run, largest, tried = _runner(file, to), 0.0, list[list[int]]()
    for batch, grid in case.tries:
        given = case.draw(batch, grid)
        for ours, theirs in zip(case.eager(*given), run(*given), strict=True):
            scale = max(1.0, float(ours.float().abs().max()))
            largest = max(largest, float((ours.float() - theirs.float()).abs().max()) / scale)
            if ours.dtype != theirs.dtype or not largest <= CLOSE:  # neither is NaN
                raise WeightsError(
                    f"{name}: not written: it gives other values than PyTorch, {largest:.1e} apart "
                    f"for images of {tuple(given[0].shape)}; please report this"
                )
        tried.append([*given[0].shape])
    one = case.draw(*case.tries[0])
    return {
        "largest": largest,
        "tried": tried,
        "seconds": _seconds(run, one),
        "eager_seconds": _seconds(case.eager, one),
    }


def _runner(file: Path, to: Target) -> graph.Run:
    if to == "torch-export":
        module = torch.export.load(file).module()

        def run_torch(*given: Tensor) -> tuple[Tensor, ...]:
            found = module(*given)
            return found if isinstance(found, tuple) else (found,)

        return run_torch
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]

    def run_onnx(*given: Tensor) -> tuple[Tensor, ...]:
        values = {name: tensor.numpy() for name, tensor in zip(names, given, strict=True)}
        return tuple(torch.from_numpy(found) for found in session.run(None, values))

    return run_onnx


def _seconds(run: graph.Run, given: tuple[Tensor, ...]) -> float:
    """Measure the median time of a few calls, after one warm-up call."""
    took = list[float]()
    for _ in range(1 + _TIMED):
        began = time.perf_counter()
        run(*given)
        took.append(time.perf_counter() - began)
    return median(took[1:])
