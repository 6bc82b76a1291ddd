"""A recipe: a named configuration with the source of each value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Generic, Literal

from mae.config.kinds import AnyRunConfig, ConfigT
from mae.config.run import FinetuneConfig, PretrainConfig
from mae.config.segment import SegmentConfig
from mae.config.sizes import size_fields

OURS = "this project"
# The official code and mmpretrain used fp16 with a scaler; here it is an option.
NOT_FP16 = f"{OURS}; the source used fp16 with a scaler (--precision fp16)"
# Fields that depend on the machine or the images; no publication specifies them.
_OUR_FIELDS = frozenset(
    "steps minutes micro_batch checkpoint_every seed precision compile device threads workers "
    "save_every_steps async_save log_every_steps keep keep_checkpoints max_bad channels "
    "measure_pixels num_classes follow_weights resize init_channels views_per_decode start_size "
    "start_share held_out objective.mask_block augment.scaled_decode".split()
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """A named configuration and its sources."""

    name: str
    about: str
    """One line: what it is and what it is used for."""
    source: str
    """Where its values come from."""
    expected: str = "no published score"
    """Published result, never one measured in this project."""
    config: AnyRunConfig
    sources: Mapping[str, str] = field(default_factory=dict)
    """Source by field, or by group of fields, where it differs from `source`."""
    pretrained: bool = True
    """Whether a recipe of anything but pre-training starts from weights."""

    @property
    def kind(self) -> Literal["pre-training", "fine-tuning", "segmentation", "detection"]:
        """Type of training."""
        if isinstance(self.config, PretrainConfig):
            return "pre-training"
        if isinstance(self.config, FinetuneConfig):
            return "fine-tuning"
        return "segmentation" if isinstance(self.config, SegmentConfig) else "detection"

    @property
    def command(self) -> str:
        """Command line that runs the recipe."""
        if self.name == "demo":
            return "mae demo"
        if self.kind == "pre-training":
            init = " --init W" if self.config.follow_weights else ""
            return f"mae pretrain {self.name} --data DIR{init}"
        verbs = {"fine-tuning": "finetune", "segmentation": "segment train"}
        verb = verbs.get(self.kind, "detect train")
        return f"mae {verb} {self.name} --data DIR{' --weights W' if self.pretrained else ''}"

    def source_of(self, path: str) -> str:
        """Return the source of a field's value.

        Args:
            path: dotted name of the field.
        """
        of_group = self.sources.get(path.rpartition(".")[0], self.source)
        return self.sources.get(path, OURS if path in _OUR_FIELDS else of_group)


@dataclass(frozen=True, kw_only=True, slots=True)
class Family(Generic[ConfigT]):
    """What the recipes of one source share; each adds its model size, length and differences."""

    config: ConfigT
    about: str
    """`Recipe.about`, with {model}, {edge} and {epochs} in place of their values."""
    source: str
    """`Recipe.source`, with the same."""
    sources: dict[str, str]
    pretrained: bool = True

    def vary(
        self,
        config: Mapping[str, Any] | None = None,
        optim: Mapping[str, Any] | None = None,
        **changes: Any,
    ) -> Family[ConfigT]:
        """Return a family that differs in fields of `config`, of `config.optim` and of its own."""
        optim = {"optim": replace(self.config.optim, **(optim or {}))}
        return replace(self, config=replace(self.config, **optim, **(config or {})), **changes)

    def recipe(
        self,
        name: str,
        size: Literal["b", "l", "h"],
        epochs: int,
        expected: str,
        *,
        edge: int = 224,
        optim: Mapping[str, float] | None = None,
        **fields: float,
    ) -> Recipe:
        """Create a recipe of the family.

        Args:
            name: its name.
            size: ViT-B/16, ViT-L/16 or ViT-H/14.
            epochs: length of the training.
            expected: published result.
            edge: height and width of the images, in pixels.
            optim: fields of `OptimConfig` that differ from the family's.
            fields: other fields of the configuration that differ.
        """
        patch = 14 if size == "h" else 16
        words = {"model": f"ViT-{size.upper()}/{patch}", "edge": edge, "epochs": epochs}
        network: Any = size_fields(f"vit-{size}/{patch}") | {"image_size": (edge, edge)}
        model = replace(self.config.model, **network)
        varied = self.vary(fields | {"epochs": epochs, "model": model}, optim)
        return Recipe(
            name=name,
            about=self.about.format(**words),
            source=self.source.format(**words),
            expected=expected,
            config=varied.config,
            sources=self.sources,
            pretrained=self.pretrained,
        )
