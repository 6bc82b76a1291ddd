"""The recipe catalogue: recipes of this project, published recipes, and lookup by name.

The published recipes are defined in `pretraining`, `finetuning`, `segmenting` and `detecting`. A
custom recipe is the `run.json` of a run, a TOML file of the same fields (`--config`), or options
on the command line.
"""

from __future__ import annotations

import dataclasses
import difflib

from mae.config.kinds import ConfigT
from mae.config.model import ModelConfig
from mae.config.objective import ObjectiveConfig
from mae.config.run import AugmentConfig, OptimConfig, PretrainConfig
from mae.config.sizes import model_config
from mae.errors import ConfigError
from mae.recipes.detecting import DETECTING
from mae.recipes.finetuning import FINETUNING
from mae.recipes.folder import FOLDER as FOLDER
from mae.recipes.folder_tuning import FINETUNE_FOLDER
from mae.recipes.pretraining import PRETRAINING
from mae.recipes.recipe import Recipe as Recipe
from mae.recipes.segmenting import SEGMENTING

# Pre-trained weights need fewer steps, and a large rate would undo what they learned: a quarter of
# the epochs and of the rate of `folder`. Not tuned (docs/continue.md).
CONTINUE = dataclasses.replace(
    FOLDER,
    model=ModelConfig(),
    follow_weights=True,
    epochs=50,
    optim=OptimConfig(lr=1.5e-4, warmup_epochs=5, decay_tokens=False),
)

# Chosen on a validation part of Fashion-MNIST; docs/log.md lists what was tried.
DEMO = PretrainConfig(
    model=model_config(
        "vit-ti/4",
        image_size=28,
        channels=1,
        width=96,
        depth=4,
        num_heads=3,
        decoder_width=64,
        decoder_depth=2,
        decoder_heads=2,
    ),
    objective=ObjectiveConfig(target_eps=1e-3),
    epochs=15,
    batch=64,
    micro_batch=32,  # two side by side on two cores
    optim=OptimConfig(lr=0.016, warmup_epochs=1.5, name="muon"),
    augment=AugmentConfig(crop_scale=(1.0, 1.0), flip=0.5),
    save_every_steps=1000,
)

RECIPES = (
    Recipe(
        name="folder",
        about="a folder of your own images; network and training follow from them",
        source="this project; as here on a GPU, else chosen by images, device and minutes",
        config=FOLDER,
    ),
    Recipe(
        name="continue",
        about="weights of any size, pre-trained further on your own images",
        source="this project's default, after `folder`; not tuned",
        config=CONTINUE,
    ),
    Recipe(
        name="demo",
        about="a small ViT on the built-in images, in minutes",
        source="chosen on a validation part of the built-in images (docs/log.md)",
        config=DEMO,
    ),
    *PRETRAINING,
    Recipe(
        name="finetune-folder",
        about="a classifier of your own labelled images, from any weights",
        source="this project's, after the published fine-tuning of ViT-B; else by the images",
        config=FINETUNE_FOLDER,
    ),
    *FINETUNING,
    *SEGMENTING,
    *DETECTING,
)


def find_recipe(name: str) -> Recipe:
    """Find a recipe by its name.

    Raises:
        ConfigError: if there is none; the message suggests the closest name.
    """
    for recipe in RECIPES:
        if recipe.name == name:
            return recipe
    near = difflib.get_close_matches(name, [recipe.name for recipe in RECIPES], n=1)
    hint = f"did you mean {near[0]}?" if near else "mae recipes list shows them"
    raise ConfigError(f"recipe: there is no {name!r}; {hint}")


def find_config(name: str, cls: type[ConfigT]) -> ConfigT:
    """Find the configuration of a recipe of one type.

    Raises:
        ConfigError: if there is no such recipe, or it is of another type.
    """
    recipe = find_recipe(name)
    if isinstance(recipe.config, cls):
        return recipe.config
    raise ConfigError(f"recipe: {name} is for {recipe.kind}; use it as {recipe.command}")
