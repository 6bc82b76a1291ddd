"""What a file or folder of weights holds, without making a model of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from mae.config import PixelConfig, size_name
from mae.fields import to_dict
from mae.weights.detect import Format, read_weights
from mae.weights.files import is_finite
from mae.weights.shapes import read_fields


class Inspection(NamedTuple):
    """What was found, as plain values: `_asdict()` is what JSON shows."""

    path: str
    format: Format
    size: str
    model: dict[str, Any]
    """Fields of `ModelConfig` as far as the file tells them."""
    has_decoder: bool
    tensors: int
    parameters: int
    """Values of all tensors, position tables included."""
    not_finite: int
    """Values that are NaN or infinite."""
    notes: list[str]

    def rows(self) -> list[tuple[str, str]]:
        """Give the lines of a table: what, and its value."""
        known = {"num_heads": "?", "decoder_heads": "?", "image_size": "??"} | self.model
        target = "pixels" + " normalised by their patch" * known.get("normalize_target", True)
        decoder = "none: features are possible, reconstruction is not"
        if self.has_decoder:
            sure = "" if "normalize_target" in known else " (assumed, the file does not say)"
            decoder = (
                f"{known['decoder_width']} x {known['decoder_depth']}, {known['decoder_heads']} "
                f"heads, predicts {target}{sure}"
            )
        return [
            ("file", self.path),
            ("format", {"mae": "this library", "facebook": "published PyTorch"}[self.format]),
            ("encoder", f"{self.size}, {known['num_heads']} heads"),
            ("pictures", "{} x {}, ".format(*known["image_size"])
             + f"{known['channels']} channels, patch {known['patch_size']}"),
            ("decoder", decoder),
            ("tensors", f"{self.tensors:,} ({self.parameters:,} parameters)"),
            ("not finite", f"{self.not_finite:,}"),
            *(("note", note) for note in self.notes),
        ]  # fmt: skip


def inspect(path: str | Path) -> Inspection:
    """Look into weights of any format that can be loaded.

    Raises:
        WeightsError: for what is no weights, or cannot be read.
    """
    raw = read_weights(path)
    fields, names, values = read_fields(raw), raw.tensors.keys(), raw.tensors.values()
    notes = []
    if names & {"fc_norm.weight", "head.weight"}:
        notes.append("a fine-tuned classifier, with a head beside the encoder")
    if "encoder.norm.weight" not in names:
        notes.append("without the encoder's last norm, which loading needs")
    return Inspection(
        path=str(raw.path),
        format=raw.format,
        size=size_name(width=fields["width"], depth=fields["depth"],
                       patch_size=fields["patch_size"]),
        model={n: to_dict(v) if isinstance(v, PixelConfig) else v for n, v in fields.items()},
        has_decoder=raw.has_decoder,
        tensors=len(raw.tensors),
        parameters=sum(tensor.numel() for tensor in values),
        not_finite=sum(int((~t.isfinite()).sum()) for t in values if not is_finite(t)),
        notes=notes,
    )  # fmt: skip
