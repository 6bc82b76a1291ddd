"""The Hub is asked where `hf:` says so, from its cache too, and answers in one line."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import torch

import mae
from mae.errors import ConfigError, WeightsError
from mae.weights.formats.native import save
from mae.weights.io import hub
from mae.weights.tools.push import push
from tests.model.tiny import tiny_model
from tests.weights import published
from tests.weights.formats.test_native import same

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def folder(generator: torch.Generator, tmp_path: Path) -> Path:
    return save(tiny_model(generator), tmp_path / "ours")


def lay(cache: Path, repo: str, folder: Path, *, ref: str = "main") -> None:
    """Lay files into a cache as huggingface_hub does: blobs, a snapshot of links, a ref."""
    root = cache / f"models--{repo.replace('/', '--')}"
    for part in ("blobs", "refs", f"snapshots/{COMMIT}"):
        (root / part).mkdir(parents=True, exist_ok=True)
    for file in folder.iterdir():
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        (root / "blobs" / digest).write_bytes(file.read_bytes())
        (root / "snapshots" / COMMIT / file.name).symlink_to(Path("../../blobs") / digest)
    (root / "refs" / ref).write_text(COMMIT)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give an empty cache, and no way to the network."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "cache"


def test_weights_in_the_cache_load_without_a_network(cache: Path, folder: Path) -> None:
    lay(cache, "owner/name", folder)

    assert same(mae.load("hf:owner/name"), mae.load(folder))
    assert same(mae.load_encoder(Path("hf:owner/name")), mae.load_encoder(folder))


def test_a_revision_is_a_ref_or_a_commit(cache: Path, folder: Path) -> None:
    lay(cache, "owner/name", folder, ref="v1.0")

    assert same(mae.load("hf:owner/name@v1.0"), mae.load(folder))
    assert same(mae.load(f"hf:owner/name@{COMMIT}"), mae.load(folder))
    with pytest.raises(WeightsError, match="not .* in the cache"):
        mae.load("hf:owner/name")


def test_a_file_of_torch_is_taken_where_there_is_nothing_safer(cache: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    path = published.checkpoint(tmp_path / "in" / "mae_pretrain.pth", published.full())
    lay(cache, "owner/name", path.parent)

    assert same(mae.load("hf:owner/name"), mae.load(path))

    published.checkpoint(tmp_path / "in" / "other.pth", published.full())
    lay(cache, "owner/two", path.parent)
    with pytest.raises(WeightsError, match="or one .bin or .pth; it has mae_pretrain.pth, other"):
        mae.load("hf:owner/two")


@pytest.mark.parametrize("name", ["hf:", "hf:name", "hf:a/b/c", "hf:a/b@", "hf:/a/b", "hf:a b/c"])
def test_a_malformed_name_is_one_line(cache: Path, name: str) -> None:
    with pytest.raises(WeightsError, match="expected hf:owner/name, or hf:owner/name@revision"):
        mae.load(name)


def test_what_is_not_in_the_cache_is_one_line_offline(cache: Path) -> None:
    with pytest.raises(WeightsError) as caught:
        mae.load("hf:owner/name")

    assert str(caught.value) == (
        "hf:owner/name: is not (whole) in the cache of huggingface_hub, and the Hub cannot be "
        "asked; go online, unset HF_HUB_OFFLINE, or copy the folder and name that"
    )


def test_a_missing_library_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "find_spec", lambda name: None)

    with pytest.raises(ConfigError, match=r"pip install 'mae-vision\[hub\]'"):
        mae.load("hf:owner/name")


@pytest.mark.slow
def test_without_hf_the_library_is_not_even_imported(folder: Path) -> None:
    code = f"""import sys, mae
mae.load({str(folder)!r})
print([name for name in sys.modules if name.startswith("huggingface_hub")])"""

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"


class FakeHub(BaseHTTPRequestHandler):
    """A Hub of one repository, `owner/name`: what huggingface_hub asks of it to download."""

    files: dict[str, bytes] = {}

    def do_HEAD(self) -> None:
        self.answer(with_body=False)

    def do_GET(self) -> None:
        self.answer(with_body=True)

    def answer(self, *, with_body: bool) -> None:
        path = self.path.partition("?")[0]
        here = "/owner/name"
        if path == f"/api/models{here}/revision/main":
            siblings = [{"rfilename": name} for name in self.files]
            self.send(json.dumps({"id": "owner/name", "sha": COMMIT, "siblings": siblings}))
        elif path == f"/api/models{here}/tree/{COMMIT}":
            entries = [
                {"type": "file", "path": name, "size": len(content), "oid": digest(content)}
                for name, content in self.files.items()
            ]
            self.send(json.dumps(entries))
        elif path.startswith(f"{here}/resolve/{COMMIT}/"):
            self.send(self.files[path.rpartition("/")[2]], with_body=with_body)
        elif path.startswith(f"/api/models{here}/revision/"):
            self.send("{}", code=404, error="RevisionNotFound")
        else:
            self.send("{}", code=404, error="RepoNotFound")

    def send(
        self, content: str | bytes, *, code: int = 200, error: str = "", with_body: bool = True
    ) -> None:
        body = content.encode() if isinstance(content, str) else content
        self.send_response(code)
        for name, value in {
            "Content-Length": str(len(body)),
            "Content-Type": "application/json",
            "ETag": f'"{digest(body)}"',
            "X-Repo-Commit": COMMIT,
            **({"X-Error-Code": error} if error else {}),
        }.items():
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None: ...


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:40]


@pytest.fixture
def server(folder: Path) -> Iterator[str]:
    FakeHub.files = {file.name: file.read_bytes() for file in folder.iterdir()}
    with ThreadingHTTPServer(("127.0.0.1", 0), FakeHub) as hub_:
        threading.Thread(target=hub_.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{hub_.server_port}"
        hub_.shutdown()


@pytest.mark.slow
def test_weights_are_fetched_once_and_then_come_from_the_cache(
    server: str, folder: Path, tmp_path: Path
) -> None:
    def ask(name: str, **environment: str) -> subprocess.CompletedProcess[str]:
        own = {"HF_HOME": str(tmp_path / "home"), "HF_ENDPOINT": server, **environment}
        command = "import sys; from mae.cli.main import main; sys.exit(main())"
        return subprocess.run(
            [sys.executable, "-c", command, "weights", "inspect", name, "--json"],
            capture_output=True, text=True, env={**os.environ, **own}, check=False,
        )  # fmt: skip

    fetched = ask("hf:owner/name")
    offline = ask("hf:owner/name", HF_HUB_OFFLINE="1")
    gone = ask("hf:owner/gone")
    no_such = ask("hf:owner/name@v9")

    assert fetched.returncode == 0, fetched.stderr
    assert json.loads(fetched.stdout)["path"].startswith(str(tmp_path / "home"))
    assert offline.stdout == fetched.stdout
    for said, message in ((gone, "no such repository"), (no_such, "no such revision")):
        assert said.returncode == 2
        line = said.stderr.splitlines()[-1]
        assert message in line and "Traceback" not in said.stderr


class FakeApi:
    """What pushing asks of the Hub, written down; the network call alone is replaced."""

    asked: list[tuple[str, dict[str, Any]]] = []
    is_public = False

    def __init__(self, **given: Any) -> None:
        self.asked.clear()

    def create_repo(self, repo: str, **given: Any) -> None:
        self.asked.append((repo, given))

    def repo_info(self, repo: str) -> SimpleNamespace:
        return SimpleNamespace(private=not self.is_public)

    def upload_folder(self, **given: Any) -> None:
        self.asked.append(("upload", given))


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> type[FakeApi]:
    monkeypatch.setattr(huggingface_hub, "HfApi", FakeApi)
    monkeypatch.setattr(FakeApi, "is_public", False)
    return FakeApi


def test_a_push_is_one_commit_of_three_files_and_private(api: type[FakeApi], folder: Path) -> None:
    url = push(folder, "owner/name")

    (repo, made), (_, uploaded) = api.asked
    assert url.endswith("/owner/name")
    assert (repo, made["private"]) == ("owner/name", True)
    assert uploaded["folder_path"] == folder
    assert sorted(uploaded["allow_patterns"]) == ["README.md", "config.json", "model.safetensors"]


def test_a_repository_that_is_public_is_not_written_to_unasked(
    api: type[FakeApi], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api, "is_public", True)

    with pytest.raises(ConfigError, match="owner/name is there and public; say --public"):
        push(folder, "owner/name")
    assert [what for what, _ in api.asked] == ["owner/name"]

    push(folder, "owner/name", public=True)
    assert [what for what, _ in api.asked] == ["owner/name", "upload"]


def test_what_cannot_be_loaded_is_not_pushed(api: type[FakeApi], folder: Path) -> None:
    api.asked.clear()
    path = published.checkpoint(folder.parent / "x.pth", published.full())

    with pytest.raises(WeightsError, match="mae weights convert IN OUT --to mae"):
        push(path, "owner/name")
    with pytest.raises(ConfigError, match="repo: got 'name', expected owner/name"):
        push(folder, "name")
    (folder / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(WeightsError, match="is not weights"):
        push(folder, "owner/name")

    assert api.asked == []


def test_a_push_that_the_hub_refuses_is_one_line(folder: Path, cache: Path) -> None:
    with pytest.raises(WeightsError, match="owner/name: the request to the Hub failed: .*offline"):
        push(folder, "owner/name")
