"""Download weights from the Hugging Face Hub, only for paths of the form `hf:owner/name`.

huggingface_hub downloads into its own cache, and uses the cache when the Hub is unreachable.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mae.errors import ConfigError, WeightsError

PREFIX = "hf:"
NAME = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")

# Formats that cannot execute code are preferred; a pickle is used only if there is no other.
_SAFE = ["config.json", "model*.safetensors", "model*.safetensors.index.json"]
_PICKLED = ["*.bin", "*.pth"]


def local(path: str | os.PathLike[str]) -> Path:
    """Return the local path of weights, downloading them for `hf:owner/name[@revision]`.

    Raises:
        WeightsError: for a Hub name that is malformed or does not exist, or for weights that are
            not in the cache and cannot be downloaded.
        ConfigError: for a Hub name if huggingface_hub is not installed.
    """
    name = os.fspath(path)
    if not name.startswith(PREFIX):
        return Path(path)
    asked = NAME.fullmatch(name.removeprefix(PREFIX))
    if asked is None:
        raise WeightsError(f"{name}: expected hf:owner/name, or hf:owner/name@revision")
    require_library(name)
    from huggingface_hub import snapshot_download

    with hub_errors(name):
        for patterns in (_SAFE, _SAFE + _PICKLED):
            revision = asked["revision"]
            folder = Path(
                snapshot_download(asked["repo"], revision=revision, allow_patterns=patterns)
            )
            if any(folder.glob("model*.safetensors")):
                return folder
    pickled = sorted(file for pattern in _PICKLED for file in folder.glob(pattern))
    if len(pickled) == 1:
        return pickled[0]
    held = ", ".join(file.name for file in pickled[:5]) or "nothing of the kind"
    raise WeightsError(
        f"{name}: expected model.safetensors, or one .bin or .pth; it has {held}; download one file"
    )


def require_library(name: str) -> None:
    """Require huggingface_hub to be installed.

    Raises:
        ConfigError: if it is missing; the message has the install command.
    """
    if find_spec("huggingface_hub") is None:
        raise ConfigError(f"{name}: requires huggingface_hub; pip install 'mae-vision[hub]'")


@contextmanager
def hub_errors(name: str) -> Iterator[None]:
    """Convert exceptions of huggingface_hub to a one-line error that says what to do.

    Args:
        name: the requested Hub name.

    Raises:
        WeightsError: for any failed request.
    """
    from huggingface_hub import errors

    messages: dict[type[Exception], str] = {
        errors.RepositoryNotFoundError: "no such repository, or not yours to see; check the name, "
        "or log in (hf auth login)",
        errors.RevisionNotFoundError: "has no such revision; leave it out, or check it",
        errors.LocalEntryNotFoundError: "is not (whole) in the cache of huggingface_hub, and the "
        "Hub cannot be asked; go online, unset HF_HUB_OFFLINE, or copy the folder and name that",
    }
    # With exceptions of the underlying HTTP library, which differs between versions.
    of_network: Any = (OSError, errors.HFValidationError, *errors.HfHubHTTPError.__bases__)
    try:
        yield
    except of_network as error:
        why = str(error).strip().partition("\n")[0] or type(error).__name__
        known = (text for kind, text in messages.items() if isinstance(error, kind))
        text = next(known, f"the request to the Hub failed: {why}")
        raise WeightsError(f"{name}: {text}") from error
