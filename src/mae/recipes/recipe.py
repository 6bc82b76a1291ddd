"""The Recipe class: a named configuration with the source of each value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from mae.config.run import FinetuneConfig, PretrainConfig

OURS = "this project"
# Fields that depend on the machine or the images; no publication specifies them.
_OUR_FIELDS = frozenset(
    "steps minutes micro_batch checkpoint_every seed precision compile device threads workers "
    "save_every_steps log_every_steps keep keep_checkpoints max_bad channels measure_pixels "
    "num_classes follow_weights resize init_channels views_per_decode start_size start_share "
    "optim.muon augment.scaled_decode".split()
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """A named configuration and its sources."""

    name: str
    about: str
    """One line: what it is and what it is used for."""
    source: str
    """Where its values come from."""
    expected: str
    """Published result, never one measured in this project."""
    config: PretrainConfig | FinetuneConfig
    sources: Mapping[str, str] = field(default_factory=dict)
    """Source by field, or by group of fields, where it differs from `source`."""
    pretrained: bool = True
    """Whether a fine-tuning recipe starts from weights."""

    @property
    def sort(self) -> Literal["pre-training", "fine-tuning"]:
        """Type of training."""
        return "fine-tuning" if isinstance(self.config, FinetuneConfig) else "pre-training"

    @property
    def command(self) -> str:
        """Command line that runs the recipe."""
        if self.name == "demo":
            return "mae demo"
        if self.sort == "pre-training":
            init = " --init W" if self.config.follow_weights else ""
            return f"mae pretrain {self.name} --data DIR{init}"
        return f"mae finetune {self.name} --data DIR{' --weights W' if self.pretrained else ''}"

    def source_of(self, path: str) -> str:
        """Return the source of a field's value.

        Args:
            path: dotted name of the field.
        """
        group = path.rpartition(".")[0]
        if path in _OUR_FIELDS:
            return self.sources.get(path) or OURS
        return self.sources.get(path) or self.sources.get(group) or self.source


MODELS = {"b": "vit-b/16", "l": "vit-l/16", "h": "vit-h/14"}
MODEL_NAMES = {"b": "ViT-B/16", "l": "ViT-L/16", "h": "ViT-H/14"}
# The official code and mmpretrain used fp16 with a scaler; here it is an option.
NOT_FP16 = f"{OURS}; the source used fp16 with a scaler (--precision fp16)"
