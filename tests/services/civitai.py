"""A stand-in for CivitAI's API, version 1: schemas, paging, rules and error bodies."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from urllib.parse import urlencode

from intelligent_generation.tests.services.server import (
    Reply,
    Request,
    Service,
    json_reply,
    page_reply,
)

Body = dict[str, Any]

TYPES = ("Checkpoint", "TextualInversion", "Hypernetwork", "LORA", "LoCon", "DoRA", "Controlnet",
         "Upscaler", "VAE")  # fmt: skip
SORTS = ("Highest Rated", "Most Downloaded", "Most Liked", "Most Discussed", "Most Collected",
         "Most Images", "Newest", "Oldest")  # fmt: skip
BROWSERS = ("mozilla", "chrome", "safari", "firefox", "opera", "edge")
CACHED = "public, s-maxage=300, stale-while-revalidate=150"


def civitai_hashes(content: bytes) -> dict[str, str]:
    """Hashes as the site's scanner makes them, upper case."""
    whole = hashlib.sha256(content).hexdigest().upper()
    header = 8 + int.from_bytes(content[:8], "little")
    payload = hashlib.sha256(content[header:]).hexdigest().upper()
    return {"SHA256": whole, "AutoV2": whole[:10], "AutoV3": payload[:12]}


def make_file(id: int, name: str, content: bytes, **fields: Any) -> Body:
    """A file of a version."""
    return {
        "id": id, "name": name, "type": "Model", "sizeKB": len(content) / 1024,
        "metadata": {"format": "SafeTensor", "size": "full", "fp": "fp16"},
        "pickleScanResult": "Success", "pickleScanMessage": "No Pickle imports",
        "virusScanResult": "Success", "virusScanMessage": None,
        "scannedAt": "2025-01-02T03:04:05.678Z", "hashes": civitai_hashes(content),
        "primary": True,
    } | fields  # fmt: skip


def make_image(id: int, level: int = 1, **fields: Any) -> Body:
    """A preview image."""
    return {
        "id": id, "url": f"https://image.example/{id}.jpeg", "nsfwLevel": level, "width": 832,
        "height": 1216, "hash": "U9E3~q", "type": "image", "hasMeta": True,
        "hasPositivePrompt": True, "onSite": False, "minor": False, "poi": False,
        "remixOfId": None,
    } | fields  # fmt: skip


def make_version(id: int, files: Sequence[Body], **fields: Any) -> Body:
    """A version of a model; `usageControl` and `meta` of images are shown by its own page only."""
    return {
        "id": id, "index": 0, "name": "v1.0", "baseModel": "SDXL 1.0", "baseModelType": "Standard",
        "publishedAt": "2025-01-02T03:04:05.678Z", "availability": "Public", "nsfwLevel": 1,
        "description": None, "trainedWords": [], "supportsGeneration": True, "paidAccess": None,
        "stats": {"downloadCount": 10, "thumbsUpCount": 5, "thumbsDownCount": 0},
        "files": list(files), "images": [make_image(id * 10)], "usageControl": "Download",
    } | fields  # fmt: skip


def make_model(id: int, name: str, versions: Sequence[Body], **fields: Any) -> Body:
    """A model with its versions, newest first."""
    return {
        "id": id, "name": name, "description": "<p>About it.</p>", "type": "LORA", "nsfw": False,
        "nsfwLevel": 1, "availability": "Public", "poi": False, "minor": False, "sfwOnly": False,
        "allowNoCredit": True, "allowCommercialUse": ["Image", "Rent"], "allowDerivatives": True,
        "allowDifferentLicense": False, "supportsGeneration": True,
        "stats": {"downloadCount": 100, "thumbsUpCount": 50, "thumbsDownCount": 1,
                  "commentCount": 2, "tippedAmountCount": 0},
        "creator": {"username": "maker", "image": None}, "tags": ["style"],
        "modelVersions": list(versions),
    } | fields  # fmt: skip


class CivitaiServer(Service):
    """The site. `models` and `images` are its content; a download redirects to `locate(file)`."""

    def __init__(self) -> None:
        super().__init__()
        self.models: list[Body] = []
        self.hidden: set[int] = set()
        """Models whose versions can be reached though they cannot."""
        self.images: dict[int, list[Body]] = {}
        """Items of `/images` by version."""
        self.tokens: set[str] = set()
        """Valid ones; any other counts as none."""
        self.locate: Callable[[Body], str] | None = None
        """Address of a file's bytes on another host."""
        self.wants_login: set[int] = set()
        self.early: dict[int, str] = {}
        """Versions in early access, with its end."""
        self.forbidden: set[int] = set()
        """Versions that the account may not download."""
        self.overworked = False
        """Whether the account has downloaded too much."""

    def answer(self, request: Request) -> Reply:
        match request.parts:
            case ["api", "v1", *rest]:
                return self._api(rest, request)
            case ["api", "download", "models", id] if id.isdecimal():
                return self._download(int(id), request)
            case ["login"]:
                return page_reply()
        return page_reply(status=404)

    def _api(self, path: list[str], request: Request) -> Reply:
        match path:
            case ["models"]:
                return self._search(request)
            case ["models", id]:
                if not id.isdecimal() or int(id) >= 2**31:
                    return _bad("Expected number, received nan")
                found = next((m for m in self._public() if m["id"] == int(id)), None)
                if found is None:
                    return json_reply({"error": f"No model with id {id}"}, 404)
                return self._data(_in_list(found, self.url))
            case ["model-versions", "by-hash"] if request.method == "POST":
                wanted = {value.lower() for value in json.loads(request.body)}
                if len(wanted) > 100 or any(len(value) != 64 for value in wanted):
                    return _bad("Array must contain at most 100 element(s)")
                found = [self._full(m, v, host="https://nowhere.example") for m, v, f in self._all()
                         if f["hashes"].get("SHA256", "").lower() in wanted]  # fmt: skip
                return self._data(found)
            case ["model-versions", "by-hash", "ids"] if request.method == "POST":
                wanted = {value.lower() for value in json.loads(request.body)}
                if len(wanted) > 10_000:
                    return _bad("Array must contain at most 10000 element(s)")
                rows = [
                    {"modelVersionId": v["id"], "modelId": m["id"], "hash": f["hashes"]["SHA256"]}
                    for m, v, f in self._all()
                    if f["hashes"].get("SHA256", "").lower() in wanted
                ]
                return self._data(rows)
            case ["model-versions", "by-hash", value]:
                hits = [
                    (v["publishedAt"], m, v)
                    for m, v, f in self._all()
                    if value.upper() in f["hashes"].values()
                ]
                if not hits:
                    return json_reply({"error": "Model not found"}, 404)
                _, model, version = min(hits, key=lambda hit: hit[0])
                return self._data(self._full(model, version))
            case ["model-versions", "mini", id] | ["model-versions", id]:
                place = self._version(int(id)) if id.isdecimal() else None
                if place is None:
                    return json_reply({"error": "Model not found"}, 404)
                full = self._full(*place)
                return self._data(_mini(full, self.url) if "mini" in path else full)
            case ["images"]:
                return self._images(request)
            case ["enums"]:
                bases = sorted({v["baseModel"] for m in self.models for v in m["modelVersions"]})
                return self._data(
                    {"ModelType": TYPES, "BaseModel": bases, "ActiveBaseModel": bases}
                )
            case ["me"]:
                if request.token not in self.tokens:
                    return json_reply({"error": "Unauthorized"}, 401)
                return json_reply({"id": 1, "username": "me"})
        return json_reply({"error": "Not found"}, 404)

    def _search(self, request: Request) -> Reply:
        query = request.query
        limit, page = request.first("limit", "100"), request.first("page")
        text, cursor = request.first("query").lower(), request.first("cursor")
        if not limit.isdecimal() or not 0 <= int(limit) <= 100:
            return _bad("Number must be less than or equal to 100")
        if any(kind not in TYPES for kind in query.get("types", [])):
            return _bad("Invalid enum value")  # also for types joined by commas
        if request.first("sort", "Highest Rated") not in SORTS:
            return _bad("Invalid enum value")
        if page and text:
            return _bad("Cannot use page param with query search. Use cursor-based pagination.")
        if page and int(page) * int(limit) > 1000:
            message = "You've requested too many pages, please use cursors instead"
            return json_reply({"error": message}, 429)
        if ("favorites" in query or "hidden" in query) and request.token not in self.tokens:
            return json_reply({"error": "Unauthorized"}, 401)
        ids = {int(id) for id in request.first("ids").split(",") if id}
        found = [
            model
            for model in self._public()
            if (not text or text in model["name"].lower())
            and (not ids or model["id"] in ids)
            and model["type"] in query.get("types", TYPES)
            and (not request.first("tag") or request.first("tag") in model["tags"])
            and _has_base(model, query.get("baseModels"))
            and (request.first("nsfw") != "false" or not model["nsfw"])
        ]
        key = {"Most Downloaded": "downloadCount", "Most Liked": "thumbsUpCount"}
        field = key.get(request.first("sort"))
        found.sort(key=lambda m: -(m["stats"][field] or 0) if field else -m["id"])
        size = int(limit)
        start = int(cursor.rpartition("|")[2]) if cursor else (int(page or 1) - 1) * size
        items = found[start : start + size]
        metadata: Body = {"currentPage": int(page), "pageSize": size} if page else {}
        if start + size < len(found):
            following = str(start + size) if text else f"{items[-1]['id']}|7|{start + size}"
            metadata["nextCursor"] = int(following) if text else following
            asked = [(n, v) for n, values in query.items() for v in values if n != "cursor"]
            metadata["nextPage"] = (
                f"{self.url}/api/v1/models?{urlencode([*asked, ('cursor', following)])}"
            )
        return self._data({"items": [_in_list(m, self.url) for m in items], "metadata": metadata})

    def _images(self, request: Request) -> Reply:
        limit = request.first("limit", "100")
        if not limit.isdecimal() or int(limit) > 200:
            return _bad("Number must be less than or equal to 200")
        items = self.images.get(int(request.first("modelVersionId", "0")), [])[: int(limit)]
        with_meta, flat = request.first("withMeta") == "true", request.first("flatMeta") == "true"
        shown = []
        for at, item in enumerate(items):
            meta = item.get("meta") if with_meta else None
            if meta is not None and not flat:
                meta = {"id": at, "meta": meta}
            shown.append(item | {"meta": meta})
        return self._data({"items": shown, "metadata": {}})

    def _download(self, id: int, request: Request) -> Reply:
        if any(word in request.headers.get("user-agent", "").lower() for word in BROWSERS):
            return Reply(302, {"Location": f"{self.url}/login?reason=download-auth"})
        place = self._version(id)
        if place is None:
            return json_reply({"error": "File not found"}, 404)
        model, version = place
        if model.get("mode") == "Archived":
            return json_reply({"error": "Model archived, not available for download"}, 410)
        if version["usageControl"] != "Download":
            return _unauthorized("The creator of this asset has disabled downloads on this file")
        known = request.token in self.tokens
        if id in self.wants_login and not known:
            return _unauthorized(
                "The creator of this asset requires you to be logged in to download it"
            )
        if id in self.early:
            message = "This asset is in Early Access. You can use Buzz access it now!"
            deadline = self.early[id]
            return json_reply(
                {"error": "Early Access", "deadline": deadline, "message": message}, 403
            )
        if id in self.forbidden:
            return json_reply({"error": "You do not have access to download this file"}, 403)
        if self.overworked:
            words = "We've noticed an unusual amount of downloading from your account. Please wait."
            return json_reply({"error": words}, 429)
        wanted = request.first("fileId")
        files = [
            f for f in version["files"] if (str(f["id"]) == wanted if wanted else f["primary"])
        ]
        if not files or self.locate is None:
            return json_reply({"error": "File not found"}, 404)
        headers = {"Location": self.locate(files[0]), "Cache-Control": "no-store"}
        return Reply(307, headers)

    def _public(self) -> list[Body]:
        return [model for model in self.models if model["id"] not in self.hidden]

    def _all(self) -> list[tuple[Body, Body, Body]]:
        return [(m, v, f) for m in self.models for v in m["modelVersions"] for f in v["files"]]

    def _version(self, id: int) -> tuple[Body, Body] | None:
        places = ((m, v) for m in self.models for v in m["modelVersions"] if v["id"] == id)
        return next(places, None)

    def _full(self, model: Body, version: Body, host: str = "") -> Body:
        base = host or self.url
        own = {key: value for key, value in version.items() if key != "index"}
        kept = ("name", "type", "nsfw", "poi", "mode")
        return own | {
            "modelId": model["id"],
            "createdAt": version["publishedAt"],
            "updatedAt": version["publishedAt"],
            "status": "Published",
            "uploadType": "Created",
            "air": f"urn:air:sdxl:{model['type'].lower()}:civitai:{model['id']}@{version['id']}",
            "model": {key: model[key] for key in kept if key in model},
            "stats": {key: version["stats"][key] for key in ("downloadCount", "thumbsUpCount")},
            "files": [_file(f, version["id"], base) for f in version["files"]],
            "downloadUrl": f"{base}/api/download/models/{version['id']}",
        }

    def _data(self, value: Any) -> Reply:
        return json_reply(value, Cache_Control=CACHED)


def _in_list(model: Body, base: str) -> Body:
    gone = model.get("mode")
    versions = []
    for version in model["modelVersions"]:
        shown = {key: value for key, value in version.items() if key != "usageControl"}
        shown["images"] = [] if gone == "TakenDown" else version["images"]
        shown["files"] = [_sparse(_file(f, version["id"], base)) for f in version["files"]]
        if gone == "Archived":
            shown["files"] = []
        else:
            shown["downloadUrl"] = f"{base}/api/download/models/{version['id']}"
        versions.append(shown)
    return model | {"modelVersions": versions}


def _sparse(file: Body) -> Body:
    # In lists `primary` is true or absent.
    return {key: value for key, value in file.items() if key != "primary" or value}


def _file(file: Body, version_id: int, base: str) -> Body:
    suffix = "" if file["primary"] else f"?type={file['type']}&format=SafeTensor"
    return file | {"downloadUrl": f"{base}/api/download/models/{version_id}{suffix}"}


def _mini(full: Body, base: str) -> Body:
    file = next(f for f in full["files"] if f["primary"])
    return {
        "air": full["air"], "size": file["sizeKB"], "fileName": file["name"],
        "hashes": file["hashes"], "downloadUrls": [f"{base}/api/download/models/{full['id']}"],
        "format": file["metadata"]["format"], "requireAuth": False, "checkPermission": False,
        "earlyAccessEndsAt": None,
    }  # fmt: skip


def _has_base(model: Mapping[str, Any], wanted: Sequence[str] | None) -> bool:
    return not wanted or any(v["baseModel"] in wanted for v in model["modelVersions"])


def _bad(message: str) -> Reply:
    issues = [{"code": "invalid", "message": message, "path": []}]
    return json_reply({"error": {"name": "ZodError", "message": message, "issues": issues}}, 400)


def _unauthorized(message: str) -> Reply:
    return json_reply({"error": "Unauthorized", "message": message}, 401)
