"""A stand-in for Ollama: its protocol as the public API documentation describes it, on loopback.

`/api/chat` (streamed as one JSON object a line, or whole), `/api/tags`, `/api/ps`. The answers
are the tests' own; which schema, options and keep_alive were asked for is in `requests`.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from .server import Reply, Request, Service, json_reply

EMPTY: Mapping[str, Any] = {
    "intent_style": "GENERAL",
    "intent_content": "OBJECT",
    "intent_quality": "MEDIUM",
    **{
        name: []
        for name in (
            *("character", "content", "setting", "style", "lighting"),
            *("camera", "quality", "technical", "mood"),
        )
    },
}
"""An answer of the right form in which nothing was found."""


def answer(**found: Any) -> str:
    """The text of an answer: EMPTY with some fields filled."""
    return json.dumps({**EMPTY, **found})


class OllamaServer(Service):
    """One Ollama. `said` is what every model answers."""

    def __init__(self, models: Sequence[str] = ("small:latest", "other:3b")) -> None:
        super().__init__()
        self.models = list(models)
        self.said = answer()
        self.done_reason = "stop"
        self.loaded: list[str] = []
        self.hang: threading.Event | None = None
        """Set it to have answers wait for the event."""

    def answer(self, request: Request) -> Reply:
        if request.path == "/api/tags":
            return json_reply({"models": [{"model": m, "name": m} for m in self.models]})
        if request.path == "/api/ps":
            return json_reply({"models": [{"model": m, "name": m} for m in self.loaded]})
        if request.path == "/api/chat" and request.method == "POST":
            return self._chat(json.loads(request.body))
        return json_reply({"error": "not found"}, 404)

    @property
    def chats(self) -> list[dict[str, Any]]:
        """Bodies of the questions asked."""
        return [json.loads(request.body) for request in self.asked("/api/chat")]

    def _chat(self, body: Mapping[str, Any]) -> Reply:
        name = body["model"]
        if name not in self.models and f"{name}:latest" not in self.models:
            return json_reply({"error": f"model '{name}' not found"}, 404)
        if self.hang is not None:
            self.hang.wait(30)
        if body.get("keep_alive") != 0:
            self.loaded = [name if name in self.models else f"{name}:latest"]
        head = {"model": name, "created_at": "2026-01-01T00:00:00Z"}
        end = {**head, "message": {"role": "assistant", "content": ""}, "done": True}
        end["done_reason"] = self.done_reason
        if not body.get("stream", True):
            end["message"]["content"] = self.said
            return json_reply(end)
        pieces = [self.said[at : at + 20] for at in range(0, len(self.said), 20)]
        lines = [
            {**head, "message": {"role": "assistant", "content": piece}, "done": False}
            for piece in pieces
        ]
        text = "".join(json.dumps(line) + "\n" for line in [*lines, end])
        return Reply(200, {"Content-Type": "application/x-ndjson"}, text.encode())
