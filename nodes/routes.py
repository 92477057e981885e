"""HTTP for the web UI and API callers, below `/intelligent_generation`.

    GET  /generations?limit=N      the newest records, newest first
    GET  /generations/{id}         one record, as JSON
    GET  /generations/{id}/prompt  an API prompt that makes the image again: POST it to /prompt
    POST /generations/{id}/rating  {"rating": 0-5, "comment": ""}, as JSON
    POST /prompt                   the same API prompt from a PNG (image/png) or a record (JSON)

Errors come as `{"error": text}` with status 400, or 404 for an unknown id.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from aiohttp import web

PREFIX = "/intelligent_generation"
MAX_LISTED = 500
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


async def _list_generations(request: web.Request) -> web.Response:
    from ..core.errors import SettingError
    from ..core.services import services

    text = request.query.get("limit", "20")
    if not text.isdecimal() or not 1 <= int(text) <= MAX_LISTED:
        raise SettingError(f"limit must be a whole number from 1 to {MAX_LISTED}, not {text!r}.")
    records = await asyncio.to_thread(services().recent, int(text))
    return web.json_response([record.model_dump(mode="json") for record in records])


async def _get_generation(request: web.Request) -> web.Response:
    from ..core.services import services

    record = await asyncio.to_thread(services().generation, request.match_info["id"])
    return web.json_response(text=record.to_json())


async def _get_prompt(request: web.Request) -> web.Response:
    from ..core.services import services

    prompt = await asyncio.to_thread(services().replay, request.match_info["id"])
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
    replay = services().replay_png if kind == "image/png" else services().replay_json
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
        services().rate, request.match_info["id"], body["rating"], str(body.get("comment") or "")
    )
    return web.json_response({"status": status})
