"""What a file or folder of weights holds, without making a model of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from mae.config import PixelConfig
from mae.fields import to_dict
from mae.weights.detect import Format, read_weights
from mae.weights.files import is_finite
from mae.weights.shapes import read_fields


class Inspection(NamedTuple):
    """What was found, as plain values: `_asdict()` is what JSON shows."""

    path: str
    format: Format
    has_decoder: bool
    tensors: int
    parameters: int
    """Values of all tensors, position tables included."""
    not_finite: int
    """Values that are NaN or infinite."""
    model: dict[str, Any]
    """Fields of `ModelConfig` as far as the file tells them."""

    def rows(self) -> list[tuple[str, str]]:
        """Give the lines of a table: what, and its value."""
        facts = {name: value for name, value in self._asdict().items() if name != "model"}
        return [(name.replace("_", " "), str(v)) for name, v in (facts | self.model).items()]


def inspect(path: str | Path) -> Inspection:
    """Look into weights of any format that can be loaded.

    Raises:
        WeightsError: for what is no weights, or cannot be read.
    """
    raw = read_weights(path)
    fields, values = read_fields(raw), raw.tensors.values()
    return Inspection(
        path=str(raw.path),
        format=raw.format,
        has_decoder=raw.has_decoder,
        tensors=len(raw.tensors),
        parameters=sum(tensor.numel() for tensor in values),
        not_finite=sum(int((~t.isfinite()).sum()) for t in values if not is_finite(t)),
        model={n: to_dict(v) if isinstance(v, PixelConfig) else v for n, v in fields.items()},
    )
