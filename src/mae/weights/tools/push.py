"""Upload a native weights folder to the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path

from mae.errors import ConfigError, WeightsError
from mae.runs.directory import RunDir
from mae.weights.formats.native import CARD, CONFIG, TENSORS
from mae.weights.io.hub import NAME, hub_errors, require_library
from mae.weights.open_any import open_any


def push(folder: str | Path, repo: str, *, public: bool = False) -> str:
    """Upload a folder of weights to the Hub in one commit, after checking that it loads.

    Args:
        folder: a native folder, or a finished run whose weights are uploaded.
        repo: owner/name; created if missing.
        public: whether the repository may be public. Must be explicit, since publishing cannot be
            undone.

    Returns:
        URL of the repository.

    Raises:
        WeightsError: if the folder cannot be loaded, or the Hub rejects the request.
        ConfigError: for a malformed name, an existing public repository without `public`, or if
            huggingface_hub is missing.
    """
    asked = NAME.fullmatch(repo)
    if asked is None or asked["revision"]:
        raise ConfigError(f"repo: got {repo!r}, expected owner/name")
    require_library(repo)
    path = _folder_of(Path(folder))
    open_any(path)  # raises for weights that cannot be loaded
    from huggingface_hub import HfApi

    with hub_errors(repo):
        api = HfApi(library_name="mae-vision")
        api.create_repo(repo, private=not public, exist_ok=True)
        if not public and not api.repo_info(repo).private:
            raise ConfigError(
                f"repo: {repo} is there and public; say --public, or choose another name"
            )
        api.upload_folder(
            repo_id=repo,
            folder_path=path,
            allow_patterns=[CONFIG, TENSORS, CARD],
            commit_message="Weights of mae-vision",
        )
    return f"https://huggingface.co/{repo}"


def _folder_of(path: Path) -> Path:
    for folder in (path, RunDir(path).weights):
        if all((folder / name).is_file() for name in (CONFIG, TENSORS, CARD)):
            return folder
    raise WeightsError(
        f"{path}: expected a folder of {CONFIG}, {TENSORS} and {CARD}, or a finished run; make "
        "one of other weights by mae weights convert IN OUT --to mae"
    )
