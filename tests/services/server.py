"""A loopback HTTP server for stand-ins: logs every request, and fails on demand."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

from typing_extensions import Self


class Request(NamedTuple):
    """What a client sent."""

    method: str
    path: str
    """Decoded, without the query."""
    query: Mapping[str, list[str]]
    headers: Mapping[str, str]
    """Names in lower case."""
    body: bytes
    target: str
    """Path and query as sent."""
    at: float
    """time.monotonic()."""

    @property
    def parts(self) -> list[str]:
        """The path's parts; an escaped slash stays inside its part."""
        raw = urlsplit(self.target).path
        return [unquote(part) for part in raw.split("/") if part]

    def first(self, name: str, default: str = "") -> str:
        """First value of a query parameter."""
        return self.query.get(name, [default])[0]

    @property
    def token(self) -> str | None:
        """Bearer token, or `?token=`."""
        kind, _, value = self.headers.get("authorization", "").partition(" ")
        return value if kind == "Bearer" and value else self.query.get("token", [None])[0]

    def holds(self, text: str) -> bool:
        """Whether `text` is anywhere in the request."""
        everything = [
            self.target,
            *self.headers,
            *self.headers.values(),
            self.body.decode("latin-1"),
        ]
        return any(text in part for part in everything)


class Reply(NamedTuple):
    """What a server sends."""

    status: int = 200
    headers: Mapping[str, str] = {}
    body: bytes = b""
    cut_at: int | None = None
    """Close the connection after so many bytes of the body."""
    drop: bool = False
    """Close the connection instead of answering."""


def json_reply(value: Any, status: int = 200, **headers: str) -> Reply:
    """JSON; underscores in header names become hyphens."""
    named = {name.replace("_", "-"): text for name, text in headers.items()}
    body = json.dumps(value).encode()
    return Reply(status, {"Content-Type": "application/json; charset=utf-8", **named}, body)


def page_reply(text: str = "<!DOCTYPE html><html><body>Sign in</body></html>",
               status: int = 200) -> Reply:  # fmt: skip
    """A web page."""
    return Reply(status, {"Content-Type": "text/html; charset=utf-8"}, text.encode())


DROP = Reply(drop=True)


class Service:
    """One server on 127.0.0.1. Use as a context manager; subclasses answer in `answer`."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.least_interval: float | None = None
        """Seconds: requests that come sooner after one another get a 429."""
        self._faults: list[tuple[Callable[[Request], bool], Reply]] = []
        self._lock = threading.Lock()
        self._server: ThreadingHTTPServer | None = None

    def answer(self, request: Request) -> Reply:
        """The reply to a request that no fault was set up for."""
        raise NotImplementedError

    def too_many(self) -> Reply:
        """The reply to a request that comes too soon."""
        return json_reply({"error": "Too many requests"}, 429, Retry_After="1")

    def fail(self, *replies: Reply, path: str = "") -> None:
        """The next requests whose path holds `path` get these, one each, then all is well."""
        with self._lock:
            self._faults += [((lambda r: path in r.path), reply) for reply in replies]

    @property
    def url(self) -> str:
        """Base address, no slash at its end."""
        assert self._server is not None
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def asked(self, path: str) -> list[Request]:
        """Logged requests whose path holds `path`."""
        return [request for request in list(self.requests) if path in request.path]

    def __enter__(self) -> Self:
        service = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = -1  # head and body in one packet: two would wait for one another
            disable_nagle_algorithm = True

            def do_GET(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                parts = urlsplit(self.path)
                request = Request(
                    self.command,
                    unquote(parts.path),
                    parse_qs(parts.query, keep_blank_values=True),
                    {name.lower(): value for name, value in self.headers.items()},
                    self.rfile.read(length),
                    self.path,
                    time.monotonic(),
                )
                self._send(service._reply(request))

            do_HEAD = do_POST = do_GET  # noqa: N815

            def _send(self, reply: Reply) -> None:
                if reply.drop:
                    self.close_connection = True
                    return
                self.send_response(reply.status)
                for name, value in reply.headers.items():
                    self.send_header(name, value)
                if "Content-Length" not in reply.headers:
                    self.send_header("Content-Length", str(len(reply.body)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(reply.body[: reply.cut_at])
                if reply.cut_at is not None:
                    self.close_connection = True

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.shutdown()
        self._server.server_close()

    def _reply(self, request: Request) -> Reply:
        with self._lock:
            last = self.requests[-1].at if self.requests else float("-inf")
            self.requests.append(request)
            soon = self.least_interval is not None and request.at - last < self.least_interval
            fault = next((f for f in self._faults if f[0](request)), None)
            if fault is not None:
                self._faults.remove(fault)
                return fault[1]
        return self.too_many() if soon else self.answer(request)
