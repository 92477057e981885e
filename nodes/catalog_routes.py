"""HTTP for the catalog of model files and for what the pack downloaded.

    GET    /catalog/scan           how far the scan of the model folders is
    POST   /catalog/scan           {"hash_files": false, "ask_civitai": false} starts one
    DELETE /catalog/scan           stops it; what was read and hashed is kept
    GET    /catalog/meaning        how many LoRAs can be compared by meaning
    POST   /catalog/meaning        reads the others in the background
    GET    /loras/edit?name=NAME   what the user says of a LoRA
    PUT    /loras/edit             {"name": ..., "trigger_words": [...], "weight": 0.8}; null or
                                   nothing leaves a field to the other sources
    GET    /downloads              the files that the pack downloaded, used last first
    PUT    /downloads              {"path": ..., "pinned": true} keeps one whatever the limits
    POST   /downloads/restore      {"path": ...} brings a compressed one back
    POST   /downloads/cleanup      {"cap_gb": 50, "keep_recent": 20, "compress_after_days": 90},
                                   at least one of them: what keeping to it would take. A dry run.
    POST   /downloads/cleanup/{id} does what that dry run said

`ask_civitai` sends the hashes of the files to CivitAI, and nothing else. The limits are in force
for that one clean-up only: nothing is ever removed by itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from aiohttp import web

_GIB = 2**30


async def get_scan(_: web.Request) -> web.Response:
    from ..core.services import services

    return web.json_response(_scan(services().scanning.scan_status()))


async def post_scan(request: web.Request) -> web.Response:
    from ..core.errors import SettingError
    from ..core.services import services

    body = await _body(request, ("hash_files", "ask_civitai"))
    for name, value in body.items():
        if not isinstance(value, bool):
            raise SettingError(f"{name} must be true or false, not {value!r}.")
    started = await asyncio.to_thread(services().scanning.start_scan, **body)
    if not started:
        raise SettingError("A scan runs already. Stop it with DELETE, or wait until it is done.")
    return await get_scan(request)


async def delete_scan(request: web.Request) -> web.Response:
    from ..core.services import services

    services().scanning.stop_scan()
    return await get_scan(request)


async def get_meaning(_: web.Request) -> web.Response:
    from ..core.services import services

    return web.json_response(services().loras.meaning.status()._asdict())


async def post_meaning(request: web.Request) -> web.Response:
    from ..core.services import services

    await _body(request, ())
    await asyncio.to_thread(services().loras.read_meaning)
    return await get_meaning(request)


async def get_edit(request: web.Request) -> web.Response:
    from ..core.services import services

    name = request.query.get("name", "")
    return web.json_response(_edit(name, await asyncio.to_thread(services().loras.lora_edit, name)))


async def put_edit(request: web.Request) -> web.Response:
    from ..core.services import services

    body = await _body(request, ("name", "trigger_words", "weight"))
    name = _text(body, "name")
    edit = await asyncio.to_thread(
        services().loras.edit_lora, name, body.get("trigger_words"), body.get("weight")
    )
    return web.json_response(_edit(name, edit))


async def get_downloads(_: web.Request) -> web.Response:
    from ..core.services import services

    files = await asyncio.to_thread(services().files.disk_cache.files)
    total = sum(file.size for file in files)
    return web.json_response({"files": list(map(_file, files)), "bytes": total})


async def put_downloads(request: web.Request) -> web.Response:
    from ..core.errors import SettingError
    from ..core.services import services

    body = await _body(request, ("path", "pinned"))
    if not isinstance(body.get("pinned"), bool):
        raise SettingError("pinned must be true or false.")
    path, cache = _text(body, "path"), services().files.disk_cache
    await asyncio.to_thread(_of_the_pack, cache, path)
    await asyncio.to_thread(cache.pin, path, pinned=body["pinned"])
    return await get_downloads(request)


async def post_restore(request: web.Request) -> web.Response:
    from ..core.services import services

    path, cache = _text(await _body(request, ("path",)), "path"), services().files.disk_cache
    await asyncio.to_thread(_of_the_pack, cache, path)
    await asyncio.to_thread(cache.restore, path)
    return await get_downloads(request)


async def post_cleanup(request: web.Request) -> web.Response:
    from ..core.catalog import Limits
    from ..core.errors import SettingError
    from ..core.services import services

    names = ("cap_gb", "keep_recent", "compress_after_days")
    body = await _body(request, names)
    if not body:
        raise SettingError(f"Give a limit: {', '.join(names)}.")
    cap, recent, days = (_number(body, name) for name in names)
    limits = Limits(
        cap_bytes=None if cap is None else int(cap * _GIB),
        keep_recent=None if recent is None else int(recent),
        compress_after=None if days is None else timedelta(days=days),
    )
    id, plan = await asyncio.to_thread(services().files.plan_cleanup, limits)
    return web.json_response(
        {
            "id": id,
            "actions": [_action(action) for action in plan.actions],
            "bytes_now": plan.bytes_now,
            "bytes_after": plan.bytes_after,
            "bytes_over": plan.over,
        }
    )


async def post_cleanup_done(request: web.Request) -> web.Response:
    from ..core.services import services

    await _body(request, ())
    report = await asyncio.to_thread(services().files.clean_up, request.match_info["id"])
    return web.json_response(
        {
            "removed": [_action(action) for action in report.removed],
            "compressed": [_action(action) for action in report.compressed],
            "freed_bytes": report.freed_bytes,
            "left_alone": [
                {**_file(file), "because": because} for file, because in report.left_alone
            ],
        }
    )


def _of_the_pack(cache: Any, path: str) -> None:
    from ..core.errors import SettingError

    if path not in {file.path for file in cache.files()}:
        raise SettingError(
            f"{path!r} is not a file that the pack downloaded. GET /downloads lists them."
        )


# --------------------------------------------------------------------------- JSON


def _scan(status: Any) -> dict[str, Any]:
    report = None if status.report is None else status.report._asdict()
    return {**status._asdict(), "report": report}


def _edit(name: str, edit: Any) -> dict[str, Any]:
    return {"name": name, **edit._asdict()}


def _file(file: Any) -> dict[str, Any]:
    return {**file._asdict(), "last_used_at": file.last_used_at.isoformat()}


def _action(action: Any) -> dict[str, Any]:
    return {"kind": action.kind, "frees": action.frees, "file": _file(action.file)}


async def _body(request: web.Request, known: tuple[str, ...]) -> dict[str, Any]:
    """The request's JSON object with none but the known fields."""
    from ..core.errors import SettingError

    # Only JSON: a form from another site could not send it without the browser asking first.
    if request.content_type != "application/json":
        raise SettingError("Send application/json.")
    try:
        body = await request.json()
    except ValueError as error:
        raise SettingError(f"This is not JSON: {error}.") from error
    if not isinstance(body, dict):
        raise SettingError("Send a JSON object.")
    if unknown := sorted(set(body) - set(known)):
        allowed = f"Known are: {', '.join(known)}." if known else "It takes none."
        raise SettingError(f"There is no field {unknown[0]!r} here. {allowed}")
    return body


def _text(body: Mapping[str, Any], name: str) -> str:
    from ..core.errors import SettingError

    value = body.get(name)
    if not isinstance(value, str) or not value:
        raise SettingError(f"{name} must be a text.")
    return value


def _number(body: Mapping[str, Any], name: str) -> float | None:
    from ..core.errors import SettingError

    value = body.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1e9:
        raise SettingError(f"{name} must be a number from 0 to 1,000,000,000, not {value!r}.")
    return float(value)
