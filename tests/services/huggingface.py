"""A stand-in for the Hugging Face Hub's model API and its `resolve` addresses."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode

from intelligent_generation.tests.services.server import Reply, Request, Service, json_reply

Body = dict[str, Any]


@dataclass
class Repository:
    """A model repository. What ends in .safetensors, .bin, .ckpt or .gguf is stored by LFS."""

    id: str
    files: dict[str, bytes] = field(default_factory=dict)
    tags: list[str] = field(default_factory=list)
    card: Body = field(default_factory=dict)
    pipeline_tag: str | None = "text-to-image"
    library_name: str | None = "diffusers"
    gated: str | bool = False
    private: bool = False
    disabled: bool = False
    downloads: int = 0
    likes: int = 0
    created: str = "2025-01-02T03:04:05.000Z"
    branches: tuple[str, ...] = ("main",)

    @property
    def sha(self) -> str:
        """The only commit."""
        return hashlib.sha1(self.id.encode(), usedforsecurity=False).hexdigest()


def is_lfs(name: str) -> bool:
    """Whether a file is stored by LFS."""
    return name.endswith((".safetensors", ".bin", ".ckpt", ".gguf"))


class HuggingFaceServer(Service):
    """The Hub. `repositories` are its content; large files redirect to `locate(repo, name)`."""

    def __init__(self) -> None:
        super().__init__()
        self.repositories: list[Repository] = []
        self.tokens: set[str] = set()
        """Valid ones."""
        self.accepted: set[str] = set()
        """Gated repositories whose terms the tokens' account accepted."""
        self.locate: Callable[[Repository, str], str] | None = None
        """Address of a file's bytes on another host; None: they come from here."""

    def too_many(self) -> Reply:
        return json_reply(
            {"error": "You have reached your rate limit"}, 429,
            RateLimit='"api";r=0;t=1', RateLimit_Policy='"fixed window";"api";q=500;w=300',
        )  # fmt: skip

    def answer(self, request: Request) -> Reply:
        if request.token is not None and request.token not in self.tokens:
            return _error(401, "", "Invalid credentials in Authorization header")
        match request.parts:
            case ["api", "models"]:
                return self._search(request)
            case ["api", "models", owner, name, *rest]:
                return self._look_up(f"{owner}/{name}", rest, request)
            case [owner, name, "resolve", revision, *path] if path:
                return self._resolve(f"{owner}/{name}", revision, "/".join(path), request)
        return _error(404, "", "Not found")

    def _search(self, request: Request) -> Reply:
        if "expand" in request.query and request.query.keys() & {"full", "cardData"}:
            return _error(400, "", "expand cannot be used with full or cardData")
        found = [
            repo
            for repo in self.repositories
            if not repo.private
            and request.first("search").lower() in repo.id.lower()
            and all(tag in self._tags(repo) for tag in request.query.get("filter", []))
            and request.first("author", repo.id.split("/")[0]) == repo.id.split("/")[0]
            and request.first("pipeline_tag", repo.pipeline_tag or "") == (repo.pipeline_tag or "")
        ]
        key: Callable[[Repository], Any] = {
            "downloads": lambda r: r.downloads, "likes": lambda r: r.likes,
            "createdAt": lambda r: r.created,
        }.get(request.first("sort"), lambda r: r.id)  # fmt: skip
        found.sort(key=key, reverse=True)
        start = int(request.first("cursor", "0"), 16)
        size = int(request.first("limit", "1000"))
        page = found[start : start + size]
        headers = {}
        if start + size < len(found):
            kept = [(n, v) for n, values in request.query.items() for v in values if n != "cursor"]
            query = urlencode([*kept, ("cursor", f"{start + size:x}")])
            headers["Link"] = f'<{self.url}/api/models?{query}>; rel="next"'
        return json_reply([self._info(repo, request) for repo in page], **headers)

    def _look_up(self, id: str, rest: list[str], request: Request) -> Reply:
        repo = self._visible(id, request)
        if isinstance(repo, Reply):
            return repo
        match rest:
            case [] | ["revision", _] as revision:
                if revision and not self._has(repo, revision[1]):
                    return _error(404, "RevisionNotFound", f"Invalid rev id: {revision[1]}")
                return json_reply(self._info(repo, request))
            case ["tree", revision, *_]:
                if not self._has(repo, revision):
                    return _error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
                return json_reply([_tree(name, data) for name, data in repo.files.items()])
        return _error(404, "", "Not found")

    def _resolve(self, id: str, revision: str, name: str, request: Request) -> Reply:
        repo = self._visible(id, request, files=True)
        if isinstance(repo, Reply):
            return repo
        if not self._has(repo, revision):
            return _error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        if name not in repo.files:
            return _error(404, "EntryNotFound", "Entry not found")
        data = repo.files[name]
        digest = hashlib.sha256(data).hexdigest()
        headers = {"X-Repo-Commit": repo.sha, "ETag": f'"{digest}"', "Accept-Ranges": "bytes"}
        if is_lfs(name):
            headers |= {"X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(len(data))}
            if self.locate is not None:
                return Reply(302, headers | {"Location": self.locate(repo, name)})
        return Reply(200, headers | {"Content-Type": "application/octet-stream"}, data)

    def _visible(self, id: str, request: Request, files: bool = False) -> Repository | Reply:
        repo = next((repo for repo in self.repositories if repo.id == id), None)
        known = request.token is not None
        if repo is None or (repo.private and not known):
            # Who is not logged in is not told whether a private one is there.
            return _error(404 if known else 401, "RepoNotFound", "Repository not found")
        if repo.disabled:
            return _error(403, "", "Access to this resource is disabled.")
        if repo.gated and files and not (known and id in self.accepted):
            words = f"Access to model {id} is restricted. You must have access to it."
            return _error(403 if known else 401, "GatedRepo", words)
        return repo

    def _has(self, repo: Repository, revision: str) -> bool:
        return revision in (*repo.branches, repo.sha)

    def _info(self, repo: Repository, request: Request) -> Body:
        siblings: list[Body] = [{"rfilename": name} for name in repo.files]
        if request.first("blobs") in ("true", "True"):
            siblings = [_sibling(name, data) for name, data in repo.files.items()]
        return {
            "_id": repo.sha[:24], "id": repo.id, "modelId": repo.id,
            "author": repo.id.split("/")[0], "sha": repo.sha, "lastModified": repo.created,
            "createdAt": repo.created, "private": repo.private, "gated": repo.gated,
            "disabled": repo.disabled, "downloads": repo.downloads, "likes": repo.likes,
            "library_name": repo.library_name, "pipeline_tag": repo.pipeline_tag,
            "tags": self._tags(repo), "cardData": repo.card, "siblings": siblings,
        }  # fmt: skip

    def _tags(self, repo: Repository) -> list[str]:
        base = repo.card.get("base_model") or []
        bases = [base] if isinstance(base, str) else base
        kinds = ["base_model:", *(["base_model:adapter:"] if "lora" in repo.tags else [])]
        licence = [f"license:{repo.card['license']}"] if "license" in repo.card else []
        library = [repo.library_name] if repo.library_name else []
        return [*library, *repo.tags, *(kind + name for kind in kinds for name in bases), *licence]


def _sibling(name: str, data: bytes) -> Body:
    blob = hashlib.sha1(data, usedforsecurity=False).hexdigest()
    row: Body = {"rfilename": name, "size": len(data), "blobId": blob}
    if is_lfs(name):
        digest = hashlib.sha256(data).hexdigest()
        row["lfs"] = {"sha256": digest, "size": len(data), "pointerSize": 134}
    return row


def _tree(name: str, data: bytes) -> Body:
    row: Body = {"type": "file", "path": name, "size": len(data), "oid": "0" * 40}
    if is_lfs(name):
        digest = hashlib.sha256(data).hexdigest()
        row["lfs"] = {"oid": digest, "size": len(data), "pointerSize": 134}
    return row


def _error(status: int, code: str, message: str) -> Reply:
    headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
    return json_reply({"error": message}, status, **headers)
