"""What a person pastes to name a model on a hub, as a typed reference.

Takes addresses of both sites, `hf:owner/name@revision/folder/file`, `civitai:123@456`, an AIR
(`urn:air:sdxl:lora:civitai:123@456`, developer.civitai.com/site/guide/air) and a file's hash.
"""

from __future__ import annotations

import re
from typing import Literal, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

from ..errors import SettingError

HashKind = Literal["sha256", "autov3", "autov2", "autov1"]


class CivitaiReference(NamedTuple):
    """A model or a version of one on CivitAI: at least one of the two numbers is there."""

    model_id: int | None = None
    version_id: int | None = None
    """None: the newest version."""
    file_id: int | None = None
    """None: the version's main file."""

    def __str__(self) -> str:
        version = "" if self.version_id is None else f"@{self.version_id}"
        return f"civitai:{self.model_id or ''}{version}" + (
            "" if self.file_id is None else f"+{self.file_id}"
        )


class HuggingFaceReference(NamedTuple):
    """A repository on Hugging Face, or a file in it."""

    repo: str
    """owner/name."""
    revision: str | None = None
    """Branch, tag or commit; None: main."""
    file: str | None = None
    """Path inside the repository; None: the whole, or its main file."""

    def __str__(self) -> str:
        revision = "" if self.revision is None else "@" + self.revision.replace("/", "%2F")
        file = "" if self.file is None else "/" + self.file.replace("%", "%25")
        return f"hf:{self.repo}{revision}{file}"


class HashReference(NamedTuple):
    """A file by a hash of its content; CivitAI finds it."""

    value: str
    """Lower-case hex."""
    kind: HashKind

    def __str__(self) -> str:
        return f"hash:{self.value}"


Reference = CivitaiReference | HuggingFaceReference | HashReference

FORMS = (
    "an address of civitai.com, civitai.red or huggingface.co, hf:owner/name/file, "
    "hf:owner/name@revision/file, civitai:123, civitai:123@456, urn:air:…:civitai:123@456, or a "
    "file's SHA-256, AutoV2 or AutoV3 hash"
)

_HASHES: dict[int, HashKind] = {64: "sha256", 12: "autov3", 10: "autov2", 8: "autov1"}
_HEX = re.compile(r"[0-9a-fA-F]+")
_NUMBERS = re.compile(r"([0-9]{1,10})?(?:@([0-9]{1,10}))?(?:\+([0-9]{1,10}))?")
_AIR = re.compile(
    r"(?:urn:)?(?:air:)?(?:[\w.-]+:){0,2}(?P<hub>civitai|huggingface):(?P<id>.+)", re.IGNORECASE
)
_AIR_TAIL = re.compile(r"(?::[\w-]+)?(?:\.[a-zA-Z]\w*)?$")
_PART = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?")
_CIVITAI_HOSTS = frozenset({"civitai.com", "civitai.red", "civitai.green"})
_HUGGINGFACE_HOSTS = frozenset({"huggingface.co", "hf.co"})
_MAX_TEXT = 2048


def parse_reference(text: str, *, mirrors: tuple[str, ...] = ()) -> Reference:
    """What `text` names.

    Args:
        text: as pasted; blanks around it do not matter.
        mirrors: host names beside the well-known ones, of a configured `HF_ENDPOINT` or
            `CIVITAI_ENDPOINT`; an address there is read by its path.

    Raises:
        SettingError: it names nothing, is ambiguous, or holds a token.
    """
    pasted = text.strip().strip("<>\"'").strip()
    if not pasted or len(pasted) > _MAX_TEXT or not pasted.isprintable():
        raise SettingError(f"No model is named. Give {FORMS}.")
    scheme, colon, rest = pasted.partition(":")
    match scheme.lower():
        case "http" | "https":
            return _address(pasted, mirrors)
        case "hf" | "huggingface" if colon:
            return _huggingface(rest.removeprefix("//"), pasted)
        case "civitai" if colon:
            return _civitai(rest, pasted)
        case "hash" | "sha256" | "autov1" | "autov2" | "autov3" if colon:
            return _hash(rest, pasted)
    if match := _AIR.fullmatch(pasted):
        return _air(match["hub"].lower(), match["id"], pasted)
    if pasted.lower().startswith(tuple(f"{h}/" for h in _CIVITAI_HOSTS | _HUGGINGFACE_HOSTS)):
        return _address(f"https://{pasted}", mirrors)
    if _HEX.fullmatch(pasted) and len(pasted) in _HASHES and not pasted.isdecimal():
        return _hash(pasted, pasted)
    if pasted.isdecimal():
        raise SettingError(
            f"{pasted} alone may be a model, a version or a hash. Write civitai:{pasted} for a "
            f"model, civitai:@{pasted} for a version, or hash:{pasted}."
        )
    if re.fullmatch(r"[\w.-]+/[\w.-]+(/.+)?", pasted):
        raise _unclear(pasted, f" For a repository on Hugging Face write hf:{pasted}.")
    raise _unclear(pasted)


def _address(url: str, mirrors: tuple[str, ...]) -> Reference:
    try:
        parts = urlsplit(url)
        host = (parts.hostname or "").removeprefix("www.")
        query = parse_qs(parts.query)
    except ValueError:
        raise _unclear("This address") from None
    if "token" in query or "@" in parts.netloc:
        raise SettingError(
            "The address holds a login or token, which would be stored with the workflow. Remove "
            "it from the address, make a new token on the site, and set that in the pack's "
            "settings."
        )
    shown = f"{parts.scheme}://{parts.netloc}{parts.path}"
    path = [unquote(part) for part in parts.path.split("/") if part]
    if host in _HUGGINGFACE_HOSTS:
        return _huggingface_path(path, shown)
    if host in _CIVITAI_HOSTS:
        return _civitai_path(path, query, shown)
    if host in mirrors:
        looks_civitai = path[:1] in (["models"], ["model-versions"], ["api"])
        return (
            _civitai_path(path, query, shown) if looks_civitai else _huggingface_path(path, shown)
        )
    raise SettingError(
        f"{shown} is neither on CivitAI nor on Hugging Face. Give {FORMS}. A file from elsewhere "
        "can be put into ComfyUI's model folder by hand."
    )


def _civitai_path(path: list[str], query: dict[str, list[str]], shown: str) -> CivitaiReference:
    def number(text: str | None) -> int | None:
        return int(text) if text and re.fullmatch(r"[0-9]{1,10}", text) else None

    file_id = number(query.get("fileId", [None])[0])
    match path:
        case ["api", "download", "models", id] if version := number(id):
            return CivitaiReference(None, version, file_id)
        case ["models", id, *_] | ["api", "v1", "models", id] if model := number(id):
            version = query.get("modelVersionId", [None])[0]
            if version is not None and number(version) is None:
                raise _unclear(shown, f" Its modelVersionId {version!r} is no number.")
            return CivitaiReference(model, number(version), file_id)
        case ["model-versions", id] | ["api", "v1", "model-versions", id] if version := number(id):
            return CivitaiReference(None, version, file_id)
        case ["images" | "posts" | "user" | "articles" | "collections", *_]:
            raise SettingError(
                f"{shown} is no model's page. Open the model itself and copy that address."
            )
    raise _unclear(shown)


def _huggingface_path(path: list[str], shown: str) -> HuggingFaceReference:
    match path:
        case ["datasets" | "spaces" as kind, *_]:
            raise SettingError(f"{shown} is one of the {kind}, not a model. Give a model's page.")
        case ["api", "models", owner, name]:
            return _repo(owner, name, None, None, shown)
        case [owner, name]:
            return _repo(owner, name, None, None, shown)
        case [owner, name, "tree" | "commit", revision]:
            return _repo(owner, name, revision, None, shown)
        case [owner, name, "blob" | "resolve" | "raw", revision, *file] if file:
            return _repo(owner, name, revision, "/".join(file), shown)
        case [_, _, "tree", _, *_]:
            raise SettingError(f"{shown} is a folder. Copy the address of a file or of the model.")
    raise _unclear(shown)


def _huggingface(text: str, pasted: str) -> HuggingFaceReference:
    owner, _, rest = text.partition("/")
    head, _, file = rest.partition("/")
    name, at, revision = head.partition("@")
    if at and not revision:
        raise _unclear(pasted, " A revision must follow the @.")
    return _repo(owner, name, unquote(revision) or None, unquote(file) or None, pasted)


def _repo(
    owner: str, name: str, revision: str | None, file: str | None, shown: str
) -> HuggingFaceReference:
    if not _PART.fullmatch(owner) or not _PART.fullmatch(name):
        raise _unclear(shown, " A repository is owner/name.")
    for path in (revision, file):
        parts = (path or "x").replace("\\", "/").split("/")
        if not all(parts) or {".", ".."} & set(parts):
            raise _unclear(shown, " Paths may not hold empty parts, . or ..")
    return HuggingFaceReference(f"{owner}/{name}", revision, file)


def _civitai(text: str, pasted: str) -> CivitaiReference:
    match = _NUMBERS.fullmatch(text)
    if not match or not (match[1] or match[2]):
        raise _unclear(pasted, " After civitai: stands a model's number, then @ and a version's.")
    model, version, file = (int(n) if n else None for n in match.groups())
    if 0 in (model, version, file):
        raise _unclear(pasted, " Numbers start at 1.")
    return CivitaiReference(model, version, file)


def _air(hub: str, id: str, pasted: str) -> Reference:
    if hub == "civitai":
        return _civitai(_AIR_TAIL.sub("", id), pasted)
    repo, _, revision = id.partition("@")
    owner, _, name = repo.partition("/")
    return _repo(owner, name, revision or None, None, pasted)


def _hash(text: str, pasted: str) -> HashReference:
    kind = _HASHES.get(len(text))
    if kind is None or not _HEX.fullmatch(text):
        raise _unclear(
            pasted, " A hash has 64 (SHA-256), 12 (AutoV3), 10 (AutoV2) or 8 (AutoV1) hex digits."
        )
    return HashReference(text.lower(), kind)


def _unclear(shown: str, hint: str = "") -> SettingError:
    return SettingError(f"{shown[:120]} does not say which model is meant.{hint} Give {FORMS}.")
