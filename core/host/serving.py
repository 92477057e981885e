"""The prompt that runs and the server that it came by: progress, interrupt, routes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import comfy.model_management as model_management
import comfy.utils


def http_routes() -> Any:
    """ComfyUI's aiohttp route table; None when nodes are loaded without a server."""
    from server import PromptServer

    server = getattr(PromptServer, "instance", None)
    return None if server is None else server.routes


def when_idle(act: Callable[[], None]) -> bool:
    """Act now if no prompt runs or waits, holding back any that comes; whether that was so.

    For other threads than the one that runs prompts: models may be freed only while that one
    uses none.
    """
    from server import PromptServer

    server = getattr(PromptServer, "instance", None)
    queue = getattr(server, "prompt_queue", None)
    if queue is None:
        act()
        return True
    with queue.mutex:
        busy = queue.currently_running or queue.queue or queue.flags
        # Between a prompt and the next the worker tidies up, before it waits again.
        waiting = getattr(queue.not_empty, "_waiters", True)
        if busy or not waiting:
            return False
        act()
        return True


def on_free_memory(act: Callable[[], None]) -> None:
    """Have `act` called whenever ComfyUI is told over HTTP to free its memory, caches and all."""
    from server import PromptServer

    server = getattr(PromptServer, "instance", None)
    if server is None:
        return

    async def answered(request: Any, response: Any) -> None:
        if request.method != "POST" or request.path not in ("/free", "/api/free"):
            return
        body = await request.json() if response.status == 200 else {}
        if body.get("free_memory"):
            act()

    server.app.on_response_prepare.append(answered)


_PROGRESS_STEPS = 1000


def progress() -> Callable[[float], None]:
    """A progress bar on the node that runs now: called with the share done, 0 to 1."""
    bar = comfy.utils.ProgressBar(_PROGRESS_STEPS)
    shown = -1

    def show(share: float) -> None:
        nonlocal shown
        if (now := int(share * _PROGRESS_STEPS)) != shown:
            shown = now
            bar.update_absolute(now)

    return show


def show_text(text: str) -> None:
    """Show text on the node that runs now, as long as it runs; nothing without a browser."""
    from comfy_execution.utils import get_executing_context
    from server import PromptServer

    context = get_executing_context()
    server = getattr(PromptServer, "instance", None)
    if context is not None and server is not None:
        server.send_progress_text(text, context.node_id)


def check_interrupt() -> None:
    """Raise ComfyUI's own exception if the user pressed cancel."""
    model_management.throw_exception_if_processing_interrupted()


def blocked(message: str | None) -> Any:
    """An output value that stops whatever node uses it, with this error message; None: without
    an error."""
    from comfy_execution.graph import ExecutionBlocker

    return ExecutionBlocker(message)
