"""CivitAI: search, look-up by id or hash, and what sample images were made with."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timezone
from html.parser import HTMLParser
from typing import Any, TypeGuard

from ..errors import HubAccessError, HubNotFoundError, SettingError
from .answers import data, failure, unreadable
from .entries import (
    MAX_ASKS,
    MinedSettings,
    ModelKind,
    RemoteFile,
    RemoteVersion,
    SearchPage,
    SearchQuery,
    Sort,
    readable,
)
from .http import Answer, Effects, Failure, Http, Pace, endpoint, persist, unreachable
from .mining import mine
from .references import CivitaiReference, HashReference

log = logging.getLogger(__name__)

ENDPOINT = "https://civitai.com"

_TYPES: dict[str, ModelKind] = {
    "Checkpoint": "checkpoint", "LORA": "lora", "LoCon": "lora", "DoRA": "lora", "VAE": "vae",
}  # fmt: skip
_SORTS: dict[Sort, str] = {
    "downloads": "Most Downloaded", "likes": "Most Liked", "newest": "Newest",
}  # fmt: skip
_FORMATS = {
    "SafeTensor": "safetensors", "PickleTensor": "ckpt", "GGUF": "gguf", "Diffusers": "diffusers",
}  # fmt: skip
_NO_MODEL = frozenset({"Training Data", "Config", "Archive", "Workflow", "Metadata"})
_SHORT = ("AutoV1", "AutoV2", "AutoV3")
_SAFE_LEVELS = 1 | 2  # PG and PG13
_MAX_IDS = 100  # per GET /models
_MAX_HASHES = 10_000  # per POST /model-versions/by-hash/ids
_MAX_FULL_HASHES = 100  # per POST /model-versions/by-hash
_DESCRIPTION = 1000
_HEX = re.compile(r"[0-9a-f]+")


class Civitai:
    """CivitAI's API, version 1. Safe to use from several threads.

    Args:
        family_of: a base model's name to an id of families.json.
        token: gives the token at each request, None for none.
        address: `ENDPOINT`, the value of `CIVITAI_ENDPOINT`, or a mirror.
        now: for early access that has ended.
    """

    def __init__(
        self,
        *,
        family_of: Callable[[str], str],
        token: Callable[[], str | None] = lambda: None,
        address: str = ENDPOINT,
        http: Http | None = None,
        pace: Pace | None = None,
        effects: Effects | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(timezone.utc),
    ) -> None:
        self.endpoint = endpoint(address, "CIVITAI_ENDPOINT")
        self._family_of = family_of
        self._token = token
        self._http = http or Http()
        self._pace = pace or Pace()
        self._effects = effects or Effects()
        self._now = now

    def search(
        self, query: SearchQuery, *, allow_nsfw: bool = False, requests: int = MAX_ASKS
    ) -> SearchPage:
        """Models, each with the newest of its versions that matches.

        The hub's filters narrow the search; every result is checked again here, because the hub
        answers for models while base models belong to versions. At most so many `requests`: a
        page may be short before the end. What a person blocked is `safety`'s to sort out.

        Raises:
            HubError, HubBusyError: see `answers`.
            SettingError: a limit out of range.
        """
        if not 1 <= query.limit <= 100:
            raise SettingError(f"A search gives 1 to 100 results at a time, not {query.limit}.")
        if query.task or query.library or query.kind in ("text_encoder", "diffusion_model"):
            return SearchPage((), None)
        params: dict[str, Any] = {"sort": _SORTS[query.sort], "nsfw": str(allow_nsfw).lower()}
        if query.text.strip():
            params["query"] = query.text.strip()
        if types := [name for name, kind in _TYPES.items() if kind == query.kind]:
            params["types"] = types
        if query.base_models:
            params["baseModels"] = list(query.base_models)
        if query.tags:
            params["tag"] = query.tags[0]
        found: list[RemoteVersion] = []
        cursor = query.cursor
        for _ in range(requests):
            # Asking for what is still missing, no more: nothing is lost between two pages.
            asked = params | {"limit": query.limit - len(found)}
            body = self._get("models", asked | ({"cursor": cursor} if cursor else {}), "a search")
            items = _list(body, "items", "a search")
            found += [v for item in items if (v := self._match(item, query, allow_nsfw))]
            following = _part(body, "metadata").get("nextCursor")
            if following is None or str(following) == cursor:
                return SearchPage(tuple(found), None)
            cursor = str(following)
            if len(found) >= query.limit:
                break
        return SearchPage(tuple(found), cursor)

    def model(self, model_id: int) -> tuple[RemoteVersion, ...]:
        """All versions of a model, newest first.

        Raises:
            HubNotFoundError: there is no such model, or it has no version.
        """
        what = f"model {model_id}"
        versions = self._versions(_object(self._get(f"models/{model_id}", {}, what), what))
        if not versions:
            raise HubNotFoundError(f"On CivitAI {what} has no published version.")
        return versions

    def version(self, version_id: int) -> RemoteVersion:
        """One version. Two requests: permissions, tags and safety are the model's.

        Raises:
            HubNotFoundError: there is no such version.
        """
        what = f"version {version_id}"
        return self._complete(_object(self._get(f"model-versions/{version_id}", {}, what), what))

    def by_hash(self, value: str) -> RemoteVersion:
        """The version that has a file with this hash (SHA-256, AutoV1, AutoV2 or AutoV3).

        Raises:
            HubNotFoundError: none has.
        """
        what = f"file with the hash {value.lower()}"
        path = f"model-versions/by-hash/{value.upper()}"
        return self._complete(_object(self._get(path, {}, what), what))

    def by_hashes(
        self,
        hashes: Iterable[str],
        *,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> dict[str, RemoteVersion]:
        """Which version each file belongs to, by lower-case SHA-256; what is unknown is left out.

        One request for 10,000 hashes and one for each 100 models; versions that their model's
        page hides are asked for by themselves.

        Args:
            hashes: full SHA-256 values, any case.
            progress: called with how many hashes are settled, and all.
        """
        wanted = list(dict.fromkeys(value.lower() for value in hashes))
        for value in wanted:
            if len(value) != 64 or not _HEX.fullmatch(value):
                raise SettingError(f"{value!r} is no SHA-256: 64 hex digits are needed.")
        known = frozenset(wanted)
        places: dict[str, tuple[int, int]] = {}
        for part in _chunks(wanted, _MAX_HASHES):
            rows = self._post("model-versions/by-hash/ids", [v.upper() for v in part])
            for row in rows:
                value = str(row.get("hash", "")).lower()
                model_id, version_id = row.get("modelId"), row.get("modelVersionId")
                if value in known and _is_id(model_id) and _is_id(version_id):
                    places[value] = (model_id, version_id)
        done = len(wanted) - len(places)
        progress(done, len(wanted))
        found: dict[str, RemoteVersion] = {}
        models: dict[int, list[str]] = {}
        for value, (model_id, _) in places.items():
            models.setdefault(model_id, []).append(value)
        for ids in _chunks(list(models), _MAX_IDS):
            versions = {v.version_id: v for item in self._models(ids) for v in self._versions(item)}
            for value in (value for id in ids for value in models[id]):
                if version := versions.get(str(places[value][1])):
                    found[value] = version
                    done += 1
            progress(done, len(wanted))
        for part in _chunks([v for v in places if v not in found], _MAX_FULL_HASHES):
            found |= self._hidden(part, places)
            done += len(part)
            progress(done, len(wanted))
        return found

    def resolve(self, reference: CivitaiReference | HashReference) -> RemoteVersion:
        """The version that a reference names; a model alone means its newest version with files.

        Raises:
            HubNotFoundError: there is none, or the version belongs to another model.
        """
        if isinstance(reference, HashReference):
            return self.by_hash(reference.value)
        if reference.version_id is not None:
            version = self.version(reference.version_id)
            if reference.model_id not in (None, int(version.model_id)):
                raise HubNotFoundError(
                    f"On CivitAI version {reference.version_id} belongs to model "
                    f"{version.model_id}, not {reference.model_id}. Write "
                    f"civitai:{version.model_id}@{reference.version_id} if you mean that one."
                )
            return version
        if reference.model_id is None:
            raise SettingError("A CivitAI model or version number is needed.")
        versions = self.model(reference.model_id)
        return next((version for version in versions if version.files), versions[0])

    def file(self, version: RemoteVersion, reference: CivitaiReference | None = None) -> RemoteFile:
        """The file to download: the one the reference names, else the version's main file.

        Raises:
            HubNotFoundError: no such file, or none at all (archived).
            HubAccessError: the version may be used on the site but not downloaded.
        """
        wanted = reference.file_id if reference else None
        if not version.files:
            message = f"On CivitAI version {version.version_id} of {version.name!r} has no file"
            if version.gated:
                raise HubAccessError(f"{message} that may be downloaded. Choose another version.")
            raise HubNotFoundError(
                f"{message}: it is archived or was refused by the scan. Choose another version."
            )
        if wanted is not None:
            for file in version.files:
                if file.file_id == wanted:
                    return file
            raise HubNotFoundError(
                f"On CivitAI version {version.version_id} of {version.name!r} has no file {wanted}."
            )
        return next((file for file in version.files if file.primary), version.files[0])

    def settings(self, version: RemoteVersion) -> MinedSettings:
        """What up to 100 sample images of the version were made with."""
        params = {"modelVersionId": version.version_id, "limit": 100, "withMeta": "true",
                  "type": "image"}  # fmt: skip
        what = f"the images of version {version.version_id}"
        images = _list(self._get("images", params, what), "items", what)
        hashes = [file.sha256 for file in version.files if file.sha256]
        return mine(images, int(version.version_id), hashes)

    # ------------------------------------------------------------------ requests

    def _get(self, path: str, params: Mapping[str, Any], what: str) -> Any:
        return self._call("GET", path, what, params=params)

    def _post(self, path: str, body: Any) -> list[Mapping[str, Any]]:
        rows = self._call("POST", path, "files by their hashes", json=body)
        if not isinstance(rows, list):
            raise unreadable("civitai", "files by their hashes")
        return [row for row in rows if isinstance(row, Mapping)]

    def _call(self, method: str, path: str, what: str, **options: Any) -> Any:
        import requests

        url = f"{self.endpoint}/api/v1/{path}"
        token = self._token()

        def attempt() -> Answer | Failure:
            try:
                answer = self._http.fetch(
                    method,
                    url,
                    stop=self._effects.stop,
                    headers={"Accept": "application/json"},
                    authorization=f"Bearer {token}" if token else None,
                    **options,
                )
            except requests.RequestException as problem:
                return unreachable("CivitAI", url, problem)
            if answer.status >= 400:
                return failure("civitai", answer, what=what, has_token=token is not None)
            return answer

        answer = persist(attempt, pace=self._pace, effects=self._effects)
        return data("civitai", answer, what=what)

    def _models(self, ids: Sequence[int]) -> list[Mapping[str, Any]]:
        params = {"ids": ",".join(map(str, ids)), "limit": _MAX_IDS, "nsfw": "true"}
        return _list(self._get("models", params, "models by number"), "items", "models by number")

    def _hidden(
        self, hashes: Sequence[str], places: Mapping[str, tuple[int, int]]
    ) -> dict[str, RemoteVersion]:
        rows = self._post("model-versions/by-hash", [value.upper() for value in hashes])
        by_id = {row["id"]: row for row in rows if _is_id(row.get("id"))}
        bodies = {value: by_id.get(places[value][1]) for value in hashes}
        return {
            value: self._version(body, _part(body, "model"))
            for value, body in bodies.items()
            if body
        }

    def _complete(self, body: Mapping[str, Any]) -> RemoteVersion:
        model_id, own = body.get("modelId"), _part(body, "model")
        try:
            item = _object(self._get(f"models/{model_id}", {}, f"model {model_id}"), "a model")
        except HubNotFoundError:
            item = own  # a version can be reached while its model is hidden
        return self._version(body, {**own, **item, "id": model_id})

    # ------------------------------------------------------------------ reading

    def _match(
        self, item: Mapping[str, Any], query: SearchQuery, allow_nsfw: bool
    ) -> RemoteVersion | None:
        wanted = {name.casefold() for name in query.base_models}
        tags = {tag.casefold() for tag in _texts(item.get("tags"))}
        if any(tag.casefold() not in tags for tag in query.tags):
            return None
        if query.kind is not None and _kind(item) != query.kind:
            return None
        for version in self._versions(item):
            if wanted and version.base_model.casefold() not in wanted:
                continue
            if query.families and version.family not in query.families:
                continue
            return version if allow_nsfw or not version.nsfw else None
        return None

    def _versions(self, item: Mapping[str, Any]) -> tuple[RemoteVersion, ...]:
        rows = item.get("modelVersions") if _is_id(item.get("id")) else None
        rows = [row for row in rows if isinstance(row, Mapping)] if isinstance(rows, list) else []
        return tuple(self._version(row, item) for row in rows if _is_id(row.get("id")))

    def _version(self, body: Mapping[str, Any], item: Mapping[str, Any]) -> RemoteVersion:
        id = body.get("id")
        model_id = item.get("id") or body.get("modelId")
        if not _is_id(id) or not _is_id(model_id):
            raise unreadable("civitai", "a version")
        base_model = _text(body, "baseModel")
        stats, of_model = _part(body, "stats"), _part(item, "stats")
        names = [_text(item, "name") or f"model {model_id}", _text(body, "name")]
        may_download = body.get("usageControl", "Download") == "Download"
        version = RemoteVersion(
            hub="civitai",
            model_id=str(model_id),
            version_id=str(id),
            name=" ".join(filter(None, names)),
            kind=_kind(item),
            base_model=base_model,
            family=self._family_of(base_model),
            files=self._files(body) if may_download else (),
            trigger_words=_trigger_words(body),
            tags=_texts(item.get("tags")),
            description=_plain(item.get("description") or body.get("description")),
            creator=_text(_part(item, "creator"), "username"),
            licence=_licence(item),
            downloads=_count(stats, "downloadCount", _count(of_model, "downloadCount")),
            likes=_count(stats, "thumbsUpCount", _count(of_model, "thumbsUpCount")),
            nsfw=_nsfw(item) or _nsfw(body),
            minor_unsafe=item.get("minor") is True,
            gated=not may_download or self._in_early_access(body),
            page=f"{self.endpoint}/models/{model_id}?modelVersionId={id}",
            image=_safe_image(body.get("images")),
        )
        return readable(version)

    def _files(self, body: Mapping[str, Any]) -> tuple[RemoteFile, ...]:
        rows = body.get("files")
        rows = [row for row in rows if isinstance(row, Mapping)] if isinstance(rows, list) else []
        found = []
        for row in rows:
            if row.get("type") in _NO_MODEL:
                continue
            if "Danger" in (row.get("pickleScanResult"), row.get("virusScanResult")):
                log.warning("CivitAI's scan calls a file of version %s dangerous.", body["id"])
                continue
            found.append(self._file(body["id"], row))
        return tuple(found)

    def _file(self, version_id: int, row: Mapping[str, Any]) -> RemoteFile:
        primary = row.get("primary") is True
        # The address in an answer can name another host (by-hash batches do): built here instead.
        id = row["id"] if _is_id(row.get("id")) else None
        url = f"{self.endpoint}/api/download/models/{version_id}"
        meta = _part(row, "metadata")
        hashes = _part(row, "hashes")
        sha256 = _text(hashes, "SHA256").lower()
        exact, about = _size(row.get("sizeKB"))
        precision = _text(meta, "fp") or _text(meta, "quantType")
        return RemoteFile(
            hub="civitai",
            url=url if primary or id is None else f"{url}?fileId={id}",
            name=_text(row, "name"),
            size=exact,
            sha256=sha256 if len(sha256) == 64 and _HEX.fullmatch(sha256) else None,
            precision=precision.lower() or None,
            format=_FORMATS.get(_text(meta, "format"), "other"),
            primary=primary,
            size_about=about,
            file_id=id,
            short_hashes=tuple(value.lower() for kind in _SHORT if (value := _text(hashes, kind))),
        )

    def _in_early_access(self, body: Mapping[str, Any]) -> bool:
        paid = body.get("paidAccess")
        if isinstance(paid, Mapping) and paid.get("permanent") is True:
            return True
        ends = [paid.get("endsAt")] if isinstance(paid, Mapping) else []
        ends += [body.get("earlyAccessDeadline"), body.get("earlyAccessEndsAt")]
        moments = [moment for end in ends if (moment := _moment(end))]
        return any(moment > self._now() for moment in moments)


def _trigger_words(body: Mapping[str, Any]) -> tuple[str, ...]:
    stripped = (word.strip(" ,") for word in _texts(body.get("trainedWords")))
    return tuple(dict.fromkeys(word for word in stripped if word))


def _kind(item: Mapping[str, Any]) -> ModelKind:
    return _TYPES.get(_text(item, "type"), "other")


def _nsfw(part: Mapping[str, Any]) -> bool:
    level = part.get("nsfwLevel")
    return part.get("nsfw") is True or (_is_id(level) and not level & _SAFE_LEVELS)


def _safe_image(images: Any) -> str | None:
    for image in images if isinstance(images, list) else ():
        if (
            isinstance(image, Mapping)
            and image.get("type", "image") == "image"
            and image.get("nsfwLevel") in (1, 2)
            and image.get("minor") is not True
            and _text(image, "url").startswith(("https://", "http://"))
        ):
            return _text(image, "url")
    return None


def _licence(item: Mapping[str, Any]) -> str:
    """What the permission fields allow, in words; empty when none is there."""
    allowed = item.get("allowCommercialUse")
    if isinstance(allowed, str):  # also as a PostgreSQL array: "{Image,Rent}"
        allowed = [use.strip() for use in allowed.strip("{}").split(",")]
    words = []
    if isinstance(allowed, list):
        uses = [_USES[use] for use in allowed if use in _USES]
        words.append(f"commercial use: {', '.join(uses) if uses else 'none'}")
    if item.get("allowNoCredit") is not None:
        words.append("no credit needed" if item["allowNoCredit"] else "credit the creator")
    if item.get("allowDerivatives") is not None:
        words.append("merges " + ("allowed" if item["allowDerivatives"] else "not allowed"))
    if item.get("allowDifferentLicense") is not None:
        different = item["allowDifferentLicense"]
        words.append("other terms on merges " + ("allowed" if different else "not allowed"))
    return "; ".join(words)


_USES = {
    "Image": "selling images",
    "RentCivit": "generation on CivitAI",
    "Rent": "generation services",
    "Sell": "selling the model",
}


def _size(kilobytes: Any) -> tuple[int | None, int | None]:
    """Exact bytes if they can be known, and about how many: the hub divides by 1,024, and an
    older entry may have been rounded to whole kilobytes, or to hundredths."""
    if isinstance(kilobytes, bool) or not isinstance(kilobytes, (int, float)) or kilobytes <= 0:
        return None, None
    size = kilobytes * 1024
    whole = float(kilobytes).is_integer() or not float(size).is_integer()
    return (None if whole else int(size)), round(size)


class _Text(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []

    def handle_data(self, data: str) -> None:
        self.parts.append(data)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.parts.append(" " if tag in ("p", "br", "li", "div", "tr") or tag[:1] == "h" else "")


def _plain(html: Any) -> str:
    if not isinstance(html, str):
        return ""
    parser = _Text()
    parser.feed(html[:100_000])
    parser.close()
    return " ".join("".join(parser.parts).split())[:_DESCRIPTION]


def _moment(value: Any) -> datetime | None:
    if not isinstance(value, str):
        return None
    try:
        # Python 3.10 reads neither a Z nor fractions of two digits.
        moment = datetime.fromisoformat(re.sub(r"(\.\d+)?Z?$", "", value))
    except ValueError:
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)


def _count(part: Mapping[str, Any], name: str, default: int | None = None) -> int | None:
    value = part.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) else default


def _text(part: Mapping[str, Any], name: str) -> str:
    value = part.get(name)
    return value.strip() if isinstance(value, str) else ""


def _texts(values: Any) -> tuple[str, ...]:
    return tuple(v for v in values if isinstance(v, str)) if isinstance(values, list) else ()


def _part(body: Any, name: str) -> Mapping[str, Any]:
    value = body.get(name) if isinstance(body, Mapping) else None
    return value if isinstance(value, Mapping) else {}


def _list(body: Any, name: str, what: str) -> list[Mapping[str, Any]]:
    rows = body.get(name) if isinstance(body, Mapping) else None
    if not isinstance(rows, list):
        raise unreadable("civitai", what)
    return [row for row in rows if isinstance(row, Mapping)]


def _object(body: Any, what: str) -> Mapping[str, Any]:
    if not isinstance(body, Mapping):
        raise unreadable("civitai", what)
    return body


def _is_id(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _chunks(values: Sequence[Any], size: int) -> list[Sequence[Any]]:
    return [values[at : at + size] for at in range(0, len(values), size)]
