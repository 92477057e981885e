"""HTTP for the web UI and API callers, below `/intelligent_generation`.

    GET  /generations?limit=N      the newest records, newest first
    GET  /generations/{id}         one record, as JSON
    GET  /generations/{id}/prompt  an API prompt that makes the image again: POST it to /prompt
    POST /generations/{id}/rating  {"rating": 0-5, "comment": ""}, as JSON
    POST /prompt                   the same API prompt from a PNG (image/png) or a record (JSON)
    GET  /models?query=TEXT        models on disk and on the hubs, see `_get_models`
    GET  /credentials              {"civitai": "set" or "not set", "huggingface": ...}
    PUT  /credentials/{hub}        {"token": text}, as JSON; answers as GET does
    DELETE /credentials/{hub}      forgets the token; answers as GET does
    GET  /ollama/models            names of the models that Ollama has
    /catalog, /loras, /downloads   see catalog_routes.py
    /memory                        see memory_routes.py

Errors come as `{"error": text}` with status 400, or 404 for an unknown id. No answer holds a
token.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from aiohttp import web

from . import catalog_routes as catalog
from . import memory_routes as memory

PREFIX = "/intelligent_generation"
MAX_LISTED = 500
MAX_FOUND = 100
"""Results of a search from each source."""
HUBS = ("civitai", "huggingface")
KINDS = ("checkpoint", "lora", "vae", "text_encoder", "diffusion_model", "other")
MAX_UPLOAD = 256 * 2**20
"""Bytes of a PNG. ComfyUI's own limit on uploads is lower by default and applies first."""


def register_routes() -> None:
    """Add the routes to ComfyUI's server; does nothing where nodes are loaded without one."""
    from ..core import host

    routes = host.http_routes()
    if routes is None:
        return
    routes.get(f"{PREFIX}/generations")(_guarded(_list_generations))
    routes.get(f"{PREFIX}/generations/{{id}}")(_guarded(_get_generation))
    routes.get(f"{PREFIX}/generations/{{id}}/prompt")(_guarded(_get_prompt))
    routes.post(f"{PREFIX}/generations/{{id}}/rating")(_guarded(_post_rating))
    routes.post(f"{PREFIX}/prompt")(_guarded(_post_prompt))
    routes.get(f"{PREFIX}/models")(_guarded(_get_models))
    routes.get(f"{PREFIX}/credentials")(_guarded(_get_credentials))
    routes.put(f"{PREFIX}/credentials/{{hub}}")(_guarded(_put_credential))
    routes.delete(f"{PREFIX}/credentials/{{hub}}")(_guarded(_delete_credential))
    routes.get(f"{PREFIX}/ollama/models")(_guarded(_get_ollama_models))
    routes.get(f"{PREFIX}/catalog/scan")(_guarded(catalog.get_scan))
    routes.get(f"{PREFIX}/catalog/meaning")(_guarded(catalog.get_meaning))
    routes.post(f"{PREFIX}/catalog/meaning")(_guarded(catalog.post_meaning))
    routes.post(f"{PREFIX}/catalog/scan")(_guarded(catalog.post_scan))
    routes.delete(f"{PREFIX}/catalog/scan")(_guarded(catalog.delete_scan))
    routes.get(f"{PREFIX}/loras/edit")(_guarded(catalog.get_edit))
    routes.put(f"{PREFIX}/loras/edit")(_guarded(catalog.put_edit))
    routes.get(f"{PREFIX}/downloads")(_guarded(catalog.get_downloads))
    routes.put(f"{PREFIX}/downloads")(_guarded(catalog.put_downloads))
    routes.post(f"{PREFIX}/downloads/restore")(_guarded(catalog.post_restore))
    routes.post(f"{PREFIX}/downloads/cleanup")(_guarded(catalog.post_cleanup))
    routes.post(f"{PREFIX}/downloads/cleanup/{{id}}")(_guarded(catalog.post_cleanup_done))
    routes.get(f"{PREFIX}/memory")(_guarded(memory.get_memory))
    routes.put(f"{PREFIX}/memory")(_guarded(memory.put_memory))
    routes.delete(f"{PREFIX}/memory/models")(_guarded(memory.delete_models))
    routes.delete(f"{PREFIX}/memory/models/{{id}}")(_guarded(memory.delete_model))
    routes.delete(f"{PREFIX}/memory/fallbacks")(_guarded(memory.delete_fallbacks))
    memory.watch_free()


Handler = Callable[[web.Request], Awaitable[web.Response]]


def _guarded(handler: Handler) -> Handler:
    async def guarded(request: web.Request) -> web.Response:
        from ..core.errors import IntelligentGenerationError, UnknownGenerationError

        try:
            return await handler(request)
        except UnknownGenerationError as error:
            return web.json_response({"error": str(error)}, status=404)
        except IntelligentGenerationError as error:
            return web.json_response({"error": str(error)}, status=400)

    return guarded


async def _get_ollama_models(request: web.Request) -> web.Response:
    from ..core.prompting import installed_models

    return web.json_response(await asyncio.to_thread(installed_models))


async def _list_generations(request: web.Request) -> web.Response:
    from ..core.services import services

    records = await asyncio.to_thread(services().records.recent, _limit(request, MAX_LISTED))
    return web.json_response([record.model_dump(mode="json") for record in records])


async def _get_generation(request: web.Request) -> web.Response:
    from ..core.services import services

    record = await asyncio.to_thread(services().records.generation, request.match_info["id"])
    return web.json_response(text=record.to_json())


async def _get_prompt(request: web.Request) -> web.Response:
    from ..core.services import services

    prompt = await asyncio.to_thread(services().records.replay, request.match_info["id"])
    return web.json_response({"prompt": prompt})


async def _post_prompt(request: web.Request) -> web.Response:
    from ..core.errors import PlanError
    from ..core.services import services

    kind = request.content_type
    if kind not in ("image/png", "application/json"):
        raise PlanError(f"Send a PNG as image/png or a record as application/json, not as {kind}.")
    if request.content_length is not None and request.content_length > MAX_UPLOAD:
        raise PlanError(f"The file is larger than {MAX_UPLOAD // 2**20} MiB.")
    body = await request.read()
    records = services().records
    replay = records.replay_png if kind == "image/png" else records.replay_json
    return web.json_response({"prompt": await asyncio.to_thread(replay, body)})


async def _post_rating(request: web.Request) -> web.Response:
    from ..core.errors import SettingError
    from ..core.services import services

    # Only JSON: a form from another site could not send it without the browser asking first.
    if request.content_type != "application/json":
        raise SettingError("Send the rating as application/json.")
    try:
        body = await request.json()
    except ValueError as error:
        raise SettingError(f"The rating is not JSON: {error}.") from error
    if not isinstance(body, dict) or not isinstance(body.get("rating"), int):
        raise SettingError('Send {"rating": 0 to 5, "comment": "text"}.')
    status = await asyncio.to_thread(
        services().records.rate,
        request.match_info["id"],
        body["rating"],
        str(body.get("comment") or ""),
    )
    return web.json_response({"status": status})


async def _get_models(request: web.Request) -> web.Response:
    """Parameters: query, kind, family, base_model, tag (these three may repeat), sort, limit (of
    each source), cursor, source (civitai, huggingface, or local for no hub; both hubs without
    it), blocked_tag (may repeat), allow_nsfw=true."""
    from ..core.errors import SettingError
    from ..core.hubs import SafetyRules, SearchQuery
    from ..core.services import services

    given = request.query

    def one_of(name: str, known: Sequence[str], default: str | None) -> Any:
        value = given.get(name) or default
        if value is not None and value not in known:
            raise SettingError(f"{name} must be one of {', '.join(known)}, not {value!r}.")
        return value

    def all_of(name: str) -> tuple[str, ...]:
        return tuple(given.getall(name, ()))

    source = one_of("source", ("local", *HUBS), None)
    query = SearchQuery(
        text=given.get("query", ""),
        kind=one_of("kind", KINDS, None),
        base_models=all_of("base_model"),
        families=all_of("family"),
        tags=all_of("tag"),
        sort=one_of("sort", ("downloads", "likes", "newest"), "downloads"),
        limit=_limit(request, MAX_FOUND),
        cursor=given.get("cursor"),
    )
    allow_nsfw = one_of("allow_nsfw", ("true", "false"), "false") == "true"
    result = await asyncio.to_thread(
        services().hubs.search_models,
        query,
        hubs=[hub for hub in HUBS if source in (None, hub)],
        rules=SafetyRules(allow_nsfw, all_of("blocked_tag")),
    )
    return web.json_response(
        {
            "models": [_hit(hit) for hit in result.hits],
            "hidden": result.hidden,
            "notices": [notice.message for notice in result.notices],
            "cursor": result.cursor,
        }
    )


def _hit(hit: Any) -> dict[str, Any]:
    version, entry = hit.version, hit.entry
    shown: dict[str, Any] = {"title": hit.title, "kind": hit.kind, "family": hit.family}
    shown["file"] = None if entry is None else f"{entry.file.folder}/{entry.file.name}"
    shown["hub"] = None
    if version is not None:
        if version.hub == "civitai":
            reference = f"civitai:{version.model_id}@{version.version_id}"
        else:
            reference = f"hf:{version.model_id}@{version.version_id}"
        main = next((file for file in version.files if file.primary), None)
        shown["hub"] = {
            "name": version.hub,
            "reference": reference,
            "page": version.page,
            "base_model": version.base_model,
            "licence": version.licence,
            "size": None if main is None else main.size or main.size_about,
            "downloads": version.downloads,
            "likes": version.likes,
            "trigger_words": version.trigger_words,
            "creator": version.creator,
            "needs_access": version.gated,
            "image": version.image,
        }
    return shown


async def _get_credentials(_: web.Request) -> web.Response:
    from ..core.services import services

    return web.json_response(await asyncio.to_thread(services().hubs.credentials.status))


async def _put_credential(request: web.Request) -> web.Response:
    from ..core.errors import SettingError
    from ..core.services import services

    hub = _hub(request)
    if request.content_type != "application/json":
        raise SettingError("Send the token as application/json.")
    try:
        body = await request.json()
    except ValueError:  # its message may quote the body
        raise SettingError('Send {"token": "text"} as JSON.') from None
    if not isinstance(body, dict) or not isinstance(body.get("token"), str):
        raise SettingError('Send {"token": "text"} as JSON.')
    await asyncio.to_thread(services().hubs.credentials.set, hub, body["token"])
    return await _get_credentials(request)


async def _delete_credential(request: web.Request) -> web.Response:
    from ..core.errors import SettingError
    from ..core.services import services

    hub, credentials = _hub(request), services().hubs.credentials
    await asyncio.to_thread(credentials.clear, hub)
    if variable := credentials.variable(hub):
        raise SettingError(
            f"The stored token is gone, but the environment variable {variable} still gives one. "
            "Remove it and start ComfyUI again."
        )
    return await _get_credentials(request)


def _hub(request: web.Request) -> Any:
    from ..core.errors import SettingError

    hub = request.match_info["hub"]
    if hub not in HUBS:
        raise SettingError(f"There is no hub {hub!r}. Name one of {', '.join(HUBS)}.")
    return hub


def _limit(request: web.Request, most: int) -> int:
    from ..core.errors import SettingError

    text = request.query.get("limit", "20")
    if not text.isdecimal() or not 1 <= int(text) <= most:
        raise SettingError(f"limit must be a whole number from 1 to {most}, not {text!r}.")
    return int(text)
