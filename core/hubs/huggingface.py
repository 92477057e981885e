"""Hugging Face: search, look-up of repositories, and their files with sizes and hashes.

Speaks through huggingface_hub, in whose versions requests, httpx and httpx2 took turns.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar
from urllib.parse import parse_qs, quote, urlsplit
from urllib.request import getproxies

from ..errors import HubError, HubNotFoundError, SettingError
from .answers import failure, unreadable
from .entries import (
    MAX_ASKS,
    ModelKind,
    RemoteFile,
    RemoteVersion,
    SearchPage,
    SearchQuery,
    Sort,
    readable,
)
from .http import (
    TIMEOUT,
    Answer,
    Effects,
    Failure,
    Pace,
    endpoint,
    is_loopback,
    lower_case,
    may_carry_token,
    persist,
    unreachable,
    without_query,
)
from .references import HuggingFaceReference
from .safety import marked_for_adults

if TYPE_CHECKING:
    from huggingface_hub import ModelInfo

T = TypeVar("T")

ENDPOINT = "https://huggingface.co"
_CLIENT = "intelligent-generation"

_SORTS: dict[Sort, str] = {"downloads": "downloads", "likes": "likes", "newest": "createdAt"}
_LORA_TAGS = frozenset({"lora", "template:sd-lora", "template:diffusion-lora"})
_IMAGE_TASKS = frozenset({"text-to-image", "image-to-image"})
_FORMATS = {
    ".safetensors": "safetensors", ".sft": "safetensors", ".gguf": "gguf", ".ckpt": "ckpt",
    ".pt": "ckpt", ".pth": "ckpt", ".bin": "ckpt",
}  # fmt: skip
_PRECISION = re.compile(
    r"(?:^|[._-])(fp32|fp16|bf16|fp8|fp4|nf4|int8|int4|q\d(?:_\w+)?)(?=[._-]|$)", re.IGNORECASE
)
_USUAL_NAMES = ("pytorch_lora_weights.safetensors",)
_INDEX = "model_index.json"
# Folders of diffusers repositories and the stem of their weights; one of the first two is needed.
_DIFFUSION = ("unet", "transformer")
_COMPONENTS = {
    **dict.fromkeys(_DIFFUSION, "diffusion_pytorch_model"),
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
    "text_encoder_2": "model",
    "text_encoder_3": "model",
}
_NEEDED = ("vae", "text_encoder")
_PIECE = re.compile(r"(?P<stem>.+?)-(?P<number>\d{5})-of-(?P<all>\d{5})(?P<end>(?:\.fp16)?)")


class DiffusersPart(NamedTuple):
    """The weights of one component of a repository in diffusers format."""

    name: str
    """Path of the file that they are, or that their pieces would be."""
    files: tuple[RemoteFile, ...]
    """Several when the hub has them in pieces, in order."""


class CachedRepository(NamedTuple):
    """A repository in huggingface_hub's own cache, which other programs fill."""

    repo: str
    commits: tuple[str, ...]
    size: int
    """Bytes on disk."""
    last_used: float
    """Seconds since 1970."""


class HuggingFace:
    """The models of the Hugging Face Hub. Safe to use from several threads.

    Args:
        family_of: a base model (`owner/name`) to an id of families.json.
        token: gives the token at each request, None for none. A login that huggingface_hub
            stored itself is not used.
        address: `ENDPOINT`, the value of `HF_ENDPOINT`, or a mirror.
        version: the pack's, for the User-Agent.
    """

    def __init__(
        self,
        *,
        family_of: Callable[[str], str],
        token: Callable[[], str | None] = lambda: None,
        address: str = ENDPOINT,
        pace: Pace | None = None,
        effects: Effects | None = None,
        version: str = "0",
    ) -> None:
        self.endpoint = endpoint(address, "HF_ENDPOINT")
        self._family_of = family_of
        self._token = token
        self._pace = pace or Pace()
        self._effects = effects or Effects()
        self._pack_version = version
        if is_loopback(self.endpoint):
            _never_by_proxy(urlsplit(self.endpoint).hostname or "")

    def search(
        self, query: SearchQuery, *, allow_nsfw: bool = False, requests: int = MAX_ASKS
    ) -> SearchPage:
        """Repositories. Sizes and hashes of their files are told by `repository` only.

        The hub's filters narrow the search; every result is checked again here. At most so many
        `requests`: a page may be short before the end.

        Raises:
            HubError, HubBusyError: see `answers`.
            SettingError: a limit out of range.
        """
        if not 1 <= query.limit <= 100:
            raise SettingError(f"A search gives 1 to 100 results at a time, not {query.limit}.")
        if query.kind in ("text_encoder", "diffusion_model"):
            return SearchPage((), None)
        params = _search_params(query)
        found: list[RemoteVersion] = []
        cursor = query.cursor
        for _ in range(requests):
            # Asking for what is still missing, no more: nothing is lost between two pages.
            asked = params | {"limit": query.limit - len(found)}
            infos, following = self._page(asked | ({"cursor": cursor} if cursor else {}))
            found += [
                version
                for info in infos
                if not info.disabled
                and _matches(info, version := self._version(info), query)
                and (allow_nsfw or not version.nsfw)
            ]
            if following is None or following == cursor:
                return SearchPage(tuple(found), None)
            cursor = following
            if len(found) >= query.limit:
                break
        return SearchPage(tuple(found), cursor)

    def repository(self, repo: str, revision: str | None = None) -> RemoteVersion:
        """A repository at a commit, with the sizes and SHA-256 of its files.

        Args:
            repo: owner/name.
            revision: branch, tag or commit; None: main.

        Raises:
            HubNotFoundError: there is none, or it is private.
            HubAccessError: its terms have to be accepted first.
        """
        from huggingface_hub import HfApi

        api = HfApi(
            endpoint=self.endpoint,
            token=False,
            library_name=_CLIENT,
            library_version=self._pack_version,
        )
        what = f"{repo}" if revision is None else f"{repo} at {revision}"

        def look_up(token: str | bool) -> ModelInfo:
            return api.model_info(
                repo, revision=revision, files_metadata=True, timeout=TIMEOUT[1], token=token
            )

        return self._version(self._call(look_up, f"{self.endpoint}/api/models/{repo}", what))

    def resolve(self, reference: HuggingFaceReference) -> RemoteVersion:
        """The repository that a reference names, see `repository`."""
        return self.repository(reference.repo, reference.revision)

    def file(self, version: RemoteVersion, name: str | None = None) -> RemoteFile:
        """The file to download: the one named by its path, else the repository's main file.

        Raises:
            HubNotFoundError: there is none; the error lists those there are.
        """
        if name is None and (file := next((f for f in version.files if f.primary), None)):
            return file
        if file := next((file for file in version.files if file.name == name), None):
            return file
        names = [file.name for file in version.files if file.name != _INDEX]
        listed = ", ".join(names[:10]) + (" ..." if len(names) > 10 else "")
        lacks = "model file of its own" if name is None else f"file {name}"
        raise HubNotFoundError(
            f"{version.model_id} on Hugging Face has no {lacks}. "
            + (f"It has: {listed}." if names else "It holds no model files at all.")
        )

    # ------------------------------------------------------------------ requests

    def _page(self, params: dict[str, Any]) -> tuple[list[ModelInfo], str | None]:
        from huggingface_hub import ModelInfo
        from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

        url = f"{self.endpoint}/api/models"

        # HfApi.list_models would wait between its tries without asking `stop`, and has no cursor.
        def look_up(token: str | bool) -> tuple[list[ModelInfo], str | None]:
            headers = build_hf_headers(
                token=token, library_name=_CLIENT, library_version=self._pack_version
            )
            response: Any = get_session().get(
                url, params=params, headers=headers, timeout=TIMEOUT[1]
            )
            hf_raise_for_status(response)
            rows = response.json()
            if not isinstance(rows, list):
                raise ValueError("no list")
            following = parse_qs(urlsplit(response.links.get("next", {}).get("url", "")).query)
            return [ModelInfo(**row) for row in rows], following.get("cursor", [None])[0]

        return self._call(look_up, url, "a search")

    def _call(self, ask: Callable[[str | bool], T], url: str, what: str) -> T:
        from huggingface_hub.utils import (
            HfHubHTTPError,
            HFValidationError,
            OfflineModeIsEnabled,
        )

        token = self._token() if may_carry_token(self.endpoint) else None

        def attempt() -> T | Failure:
            try:
                return ask(token or False)
            except HfHubHTTPError as problem:
                if problem.response is None:
                    return unreachable("Hugging Face", url, problem)
                answer = _answer(problem.response)
                return failure("huggingface", answer, what=what, has_token=token is not None)
            except OfflineModeIsEnabled:
                return Failure(
                    HubError(
                        "Hugging Face is switched off by the environment variable HF_HUB_OFFLINE. "
                        "Remove it and start ComfyUI again to use it."
                    )
                )
            except HFValidationError:
                raise SettingError(f"{what} is no name of a Hugging Face repository.") from None
            except (ValueError, KeyError, TypeError, AttributeError):
                return Failure(unreadable("huggingface", what))
            except _no_answer() as problem:
                return unreachable("Hugging Face", url, problem)

        return persist(attempt, pace=self._pace, effects=self._effects)

    # ------------------------------------------------------------------ reading

    def _version(self, info: ModelInfo) -> RemoteVersion:
        tags = tuple(tag for tag in info.tags or () if isinstance(tag, str))
        bases = _base_models(info)
        families = (family for base in bases if (family := self._family_of(base)) != "unknown")
        commit = info.sha or "main"
        trigger = _card(info, "instance_prompt")
        trigger = trigger.strip() if isinstance(trigger, str) else ""
        version = RemoteVersion(
            hub="huggingface",
            model_id=info.id,
            version_id=commit,
            name=info.id.rpartition("/")[2],
            kind=_kind(info),
            base_model=bases[0],
            family=next(families, "unknown"),
            files=self._files(info, commit),
            trigger_words=(trigger,) if trigger else (),
            tags=tuple(tag for tag in tags if ":" not in tag),
            creator=info.author or info.id.partition("/")[0],
            licence=_licence(info, tags),
            downloads=info.downloads,
            likes=info.likes,
            nsfw=marked_for_adults(tags),
            gated=bool(info.gated),
            page=f"{self.endpoint}/{info.id}",
        )
        return readable(version)

    def _files(self, info: ModelInfo, commit: str) -> tuple[RemoteFile, ...]:
        siblings = {s.rfilename: s for s in info.siblings or ()}
        names = [name for name in siblings if name == _INDEX or _suffix(name) in _FORMATS]
        is_pipeline = _INDEX in siblings
        root = f"{self.endpoint}/{info.id}/resolve/{quote(commit, safe='')}"

        def form(name: str) -> str:
            parted = is_pipeline and (name == _INDEX or "/" in name)
            return "diffusers" if parted else _FORMATS[_suffix(name)]

        def rank(name: str) -> tuple[Any, ...]:
            size = siblings[name].size or 0
            return name not in _USUAL_NAMES, name.count("/"), -size, len(name), name

        main = min((n for n in names if form(n) in ("safetensors", "gguf")), key=rank, default=None)
        return tuple(
            RemoteFile(
                hub="huggingface",
                url=f"{root}/{quote(name)}",
                name=name,
                size=siblings[name].size,
                sha256=_sha256(siblings[name]),
                precision=_precision(name),
                format=form(name),
                primary=name == main,
                size_about=siblings[name].size,
            )
            for name in names
        )


def diffusers_files(version: RemoteVersion) -> tuple[DiffusersPart, ...]:
    """What ComfyUI needs of a repository in diffusers format: the weights of its diffusion model,
    VAE and text encoders, fp16 where there are such, in one file or in pieces.

    Raises:
        HubNotFoundError: a component is missing, lacks pieces, or is only there pickled; or there
            are two diffusion models, which no single loader takes.
    """
    files = {file.name: file for file in version.files if file.format == "diffusers"}
    where = f"{version.model_id} on Hugging Face"
    if _INDEX not in files:
        raise HubNotFoundError(f"{where} is not in diffusers format: it has no {_INDEX}.")
    found = {
        folder: part
        for folder, stem in _COMPONENTS.items()
        if (part := _component(folder, stem, files, where))
    }
    models = [folder for folder in (*_DIFFUSION, "transformer_2", "unet_2") if folder in found
              or any(name.startswith(f"{folder}/") for name in files)]  # fmt: skip
    if len(models) > 1:
        raise HubNotFoundError(
            f"{where} has several diffusion models, {' and '.join(models)}, which HubModelLoader "
            "cannot load as one. Name the files themselves."
        )
    lacking = [folder for folder in _NEEDED if folder not in found]
    if not set(found) & set(_DIFFUSION):
        lacking.insert(0, models[0] if models else " or ".join(_DIFFUSION))
    if lacking:
        raise HubNotFoundError(
            f"{where} has no safetensors weights in {lacking[0]}, which ComfyUI needs to load a "
            "model in diffusers format. Choose a single-file checkpoint instead."
        )
    return tuple(found.values())


def _component(
    folder: str, stem: str, files: Mapping[str, RemoteFile], where: str
) -> DiffusersPart | None:
    pieces: dict[tuple[str, int], dict[int, RemoteFile]] = {}
    for name, file in files.items():
        path = PurePosixPath(name)
        if str(path.parent) == folder and path.suffix == ".safetensors":
            match = _PIECE.fullmatch(path.stem)
            said = (match["stem"] + match["end"], int(match["all"])) if match else (path.stem, 0)
            pieces.setdefault(said, {})[int(match["number"]) if match else 0] = file
    for wanted in (f"{stem}.fp16", stem):
        for (name, count), there in pieces.items():
            if name != wanted:
                continue
            if count and sorted(there) != list(range(1, count + 1)):
                raise HubNotFoundError(
                    f"{where} has only {len(there)} of {count} pieces of {folder}/{name}. Choose "
                    "another version or repository."
                )
            path = f"{folder}/{name}.safetensors"
            return DiffusersPart(path, tuple(there[number] for number in sorted(there)))
    return None


def cached_repositories(folder: Path | None = None) -> tuple[CachedRepository, ...]:
    """What huggingface_hub's cache holds, largest first; nothing when there is no cache.

    Args:
        folder: the cache; None: where `HF_HOME` or `HF_HUB_CACHE` say.
    """
    return tuple(
        sorted(
            (
                CachedRepository(
                    repo.repo_id,
                    tuple(sorted(revision.commit_hash for revision in repo.revisions)),
                    repo.size_on_disk,
                    repo.last_accessed,
                )
                for repo in _scan(folder)
                if repo.repo_type == "model"
            ),
            key=lambda repo: (-repo.size, repo.repo),
        )
    )


def delete_cached(commits: Sequence[str], folder: Path | None = None) -> int:
    """Delete commits of `cached_repositories` from huggingface_hub's cache; bytes set free."""
    from huggingface_hub import scan_cache_dir

    known = {revision.commit_hash for repo in _scan(folder) for revision in repo.revisions}
    if missing := sorted(set(commits) - known):
        raise SettingError(f"The Hugging Face cache has no commit {', '.join(missing)}.")
    strategy = scan_cache_dir(folder).delete_revisions(*commits)
    strategy.execute()
    return strategy.expected_freed_size


def _scan(folder: Path | None) -> Iterable[Any]:
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.utils import CacheNotFound

    try:
        return scan_cache_dir(folder).repos
    except CacheNotFound:
        return ()


def _search_params(query: SearchQuery) -> dict[str, Any]:
    params: dict[str, Any] = {"sort": _SORTS[query.sort], "full": "true", "cardData": "true"}
    filters = list(query.tags)
    if query.kind in ("lora", "vae"):
        filters.append(query.kind)
    if query.library:
        filters.append(query.library)
    if len(query.base_models) == 1:  # the hub wants all filters to hold, we any base model
        adapter = "adapter:" if query.kind == "lora" else ""
        filters.append(f"base_model:{adapter}{query.base_models[0]}")
    if filters:
        params["filter"] = filters
    if query.text.strip():
        params["search"] = query.text.strip()
    if task := query.task or ("text-to-image" if query.kind == "checkpoint" else None):
        params["pipeline_tag"] = task
    return params


def _matches(info: ModelInfo, version: RemoteVersion, query: SearchQuery) -> bool:
    tags = {tag.casefold() for tag in info.tags or ()}
    bases = {base.casefold() for base in _base_models(info)}
    return (
        (query.kind is None or version.kind == query.kind)
        and (not query.task or info.pipeline_tag == query.task)
        and (not query.library or query.library.casefold() in {info.library_name, *tags})
        and all(tag.casefold() in tags for tag in query.tags)
        and (not query.base_models or any(b.casefold() in bases for b in query.base_models))
        and (not query.families or version.family in query.families)
    )


def _kind(info: ModelInfo) -> ModelKind:
    tags = set(info.tags or ())
    if tags & _LORA_TAGS:
        return "lora"
    if "vae" in tags:
        return "vae"
    return "checkpoint" if info.pipeline_tag in _IMAGE_TASKS else "other"


def _base_models(info: ModelInfo) -> list[str]:
    """What it was made from, by its card or the hub's tags; itself when they say nothing."""
    said = _card(info, "base_model")
    said = [said] if isinstance(said, str) else said if isinstance(said, list) else []
    said += [tag.rpartition(":")[2] for tag in info.tags or () if tag.startswith("base_model:")]
    return list(dict.fromkeys(base for base in said if isinstance(base, str) and base)) or [info.id]


def _licence(info: ModelInfo, tags: Iterable[str]) -> str:
    named = _card(info, "license_name") or _card(info, "license")
    if isinstance(named, str) and named:
        return named
    return next((tag.partition(":")[2] for tag in tags if tag.startswith("license:")), "")


def _card(info: ModelInfo, field: str) -> Any:
    return info.card_data.get(field) if info.card_data is not None else None


def _sha256(sibling: Any) -> str | None:
    value = str(getattr(sibling.lfs, "sha256", "")).lower()
    return value if re.fullmatch("[0-9a-f]{64}", value) else None


def _suffix(name: str) -> str:
    return PurePosixPath(name).suffix.lower()


def _precision(name: str) -> str | None:
    found = _PRECISION.search(PurePosixPath(name).name)
    return found[1].lower() if found else None


def _answer(response: Any) -> Answer:
    try:
        body = bytes(response.content)
    except Exception:  # a body that was not read: each of the clients has its own error
        body = b""
    return Answer(
        response.status_code, lower_case(response.headers), body, without_query(str(response.url))
    )


def _no_answer() -> tuple[type[BaseException], ...]:
    # huggingface_hub has loaded whichever of them it speaks through.
    errors = {"requests": "RequestException", "httpx": "RequestError", "httpx2": "RequestError"}
    return tuple(
        getattr(sys.modules[module], name)
        for module, name in errors.items()
        if module in sys.modules
    )


def _never_by_proxy(host: str) -> None:
    # huggingface_hub's client, shared with others in the process, reads proxies from here alone.
    if not getproxies():
        return
    for name in ("NO_PROXY", "no_proxy"):
        hosts = [part for part in os.environ.get(name, "").split(",") if part]
        if host not in hosts and "*" not in hosts:
            os.environ[name] = ",".join([*hosts, host])
