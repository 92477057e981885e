"""HTTP for the models in memory.

    GET    /memory               the model pool: limits, settings, models, hits, misses, evictions;
                                 and what ComfyUI has loaded for computing
    PUT    /memory               {"budget_gb": 12, "policy": "lru", "quantized_disk_gb": 20}, one or
                                 more; budget_gb null goes back to the machine's own, 0 turns the
                                 pool off; quantized_disk_gb 0 keeps no weights on disk
    DELETE /memory/models        takes every model out of the pool
    DELETE /memory/models/{id}   takes one out
    DELETE /memory/fallbacks     forgets which sizes ran out of memory, so that they are tried
                                 again as they are; {"forgotten": count}

A model is taken out between prompts. Status 202 says that a prompt runs, and that it will be done
when that one has ended. ComfyUI's own POST /free with `free_memory` empties the pool too.
"""

from __future__ import annotations

import asyncio

from aiohttp import web

_POLL_SECONDS = 0.2
_waiting: set[asyncio.Task[None]] = set()


def watch_free() -> None:
    """Empty the pool whenever ComfyUI is told to free its memory."""
    from ..core import host

    host.on_free_memory(_unload_all)


async def get_memory(_: web.Request) -> web.Response:
    return await _answer()


async def put_memory(request: web.Request) -> web.Response:
    from ..core.errors import SettingError
    from ..core.services import services

    # Only JSON: a form from another site could not send it without the browser asking first.
    if request.content_type != "application/json":
        raise SettingError("Send the settings as application/json.")
    try:
        body = await request.json()
    except ValueError as error:
        raise SettingError(f"The settings are not JSON: {error}.") from error
    await asyncio.to_thread(services().memory.set_pool, body)
    return await _answer()


async def delete_models(_: web.Request) -> web.Response:
    return await _unload(None)


async def delete_model(request: web.Request) -> web.Response:
    return await _unload([request.match_info["id"]])


async def delete_fallbacks(_: web.Request) -> web.Response:
    from ..core.services import services

    return web.json_response(
        {"forgotten": await asyncio.to_thread(services().memory.forget_fallbacks)}
    )


async def _unload(ids: list[str] | None) -> web.Response:
    from ..core.services import services

    done = await asyncio.to_thread(services().memory.unload, ids)
    if not done:
        _finish_later()
    return await _answer(200 if done else 202)


def _unload_all() -> None:
    from ..core.services import services

    services().memory.pool.unload()
    _finish_later()


def _finish_later() -> None:
    # A prompt of stock nodes alone gives the pool no occasion to do it.
    task = asyncio.get_running_loop().create_task(_finish())
    _waiting.add(task)
    task.add_done_callback(_waiting.discard)


async def _finish() -> None:
    from ..core.services import services

    while not await asyncio.to_thread(services().memory.finish_unloading):
        await asyncio.sleep(_POLL_SECONDS)


async def _answer(status: int = 200) -> web.Response:
    from ..core.services import services

    state, loaded = await asyncio.to_thread(services().memory.state)
    pool = {
        "budget_bytes": state.limits.budget,
        "budget_reason": state.limits.reason,
        "reserve_bytes": state.limits.reserve,
        "settings": state.settings._asdict(),
        "bytes": state.bytes,
        "hits": state.hits,
        "misses": state.misses,
        "evictions": state.evictions,
        "models": [model._asdict() for model in state.models],
    }
    answer = {"pool": pool, "loaded": [one._asdict() for one in loaded]}
    return web.json_response(answer, status=status)
