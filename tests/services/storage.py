"""A loopback host of files, as the hubs' storage hosts are, with faults switched on per request.

It takes Range, marks content with an ETag, and, as CivitAI's storage does, answers 400 to a
forwarded Authorization header.
"""

from __future__ import annotations

import re
import socket
import struct
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import md5
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Fault:
    """How one answer differs from a good one."""

    cut_after: int | None = None
    """Close the connection after so many bytes of the body."""
    reset: bool = False
    """Cut with a TCP reset instead of an orderly end."""
    ignore_range: bool = False
    status: int | None = None
    """Answer with this and `body`, whatever is asked."""
    body: bytes | None = None
    """Send this with status 200 instead of the content."""
    headers: dict[str, str] = field(default_factory=dict)
    """Added to the answer, or in place of its own; an empty value leaves one out."""
    chunked: bool = False
    """Say no length; a cut then ends between two chunks, without the last one."""


@dataclass
class Seen:
    """One request that came."""

    path: str
    headers: dict[str, str]
    """Names in lower case."""
    sent: int = 0
    """Bytes of the body handed to the system so far."""

    @property
    def start(self) -> int:
        """First byte that was asked for."""
        match = re.fullmatch(r"bytes=(\d+)-", self.headers.get("range", ""))
        return int(match[1]) if match else 0


class FileHost:
    """Files by path. Use as a context manager.

    Attributes:
        requests: every request, in the order of arrival.
        faults: one is taken by each request for a file (not for a redirect); good answers
            follow when they are used up.
        redirects: path to address.
        on_sent: called with the request after each piece of a body, in the server's thread;
            may wait, which makes the server slow, or end somebody.
        arrived: set by the first request.
        open: cleared, it holds every body back before its first byte.
    """

    def __init__(self, *, piece: int = 1 << 16, rejects_authorization: bool = True) -> None:
        self.requests: list[Seen] = []
        self.faults: deque[Fault] = deque()
        self.redirects: dict[str, str] = {}
        self.on_sent: Callable[[Seen], object] = lambda seen: None
        self.arrived = threading.Event()
        self.open = threading.Event()
        self.open.set()
        self._piece, self._rejects = piece, rejects_authorization
        self._files: dict[str, tuple[bytes, str]] = {}
        host = self

        class Handler(_Handler):
            owner = host

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        )

    def __enter__(self) -> FileHost:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.open.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def put(self, path: str, content: bytes, etag: str | None = None) -> str:
        """Offer `content`; returns its address."""
        self._files[path] = (
            content,
            etag or f'"{md5(content, usedforsecurity=False).hexdigest()}"',
        )
        return self.url(path)

    def url(self, path: str, host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self._server.server_address[1]}{path}"

    @property
    def starts(self) -> list[int]:
        """First byte of each request, in order."""
        return [seen.start for seen in self.requests]

    @property
    def sent(self) -> int:
        """Bytes of all bodies."""
        return sum(seen.sent for seen in self.requests)


class _Handler(BaseHTTPRequestHandler):
    owner: FileHost
    protocol_version = "HTTP/1.1"
    timeout = 20

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def setup(self) -> None:
        # Small, so that what the server has sent is about what the client has.
        self.request.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, self.owner._piece)
        super().setup()

    def do_GET(self) -> None:
        owner = self.owner
        seen = Seen(self.path, {name.lower(): value for name, value in self.headers.items()})
        owner.requests.append(seen)
        owner.arrived.set()
        path = self.path.partition("?")[0]
        if target := owner.redirects.get(path):
            return self._answer(307, {"Location": target}, b"", seen)
        fault = owner.faults.popleft() if owner.faults else Fault()
        if owner._rejects and "authorization" in seen.headers:
            text = b"<Error><Code>InvalidArgument</Code></Error>"
            return self._answer(400, {"Content-Type": "application/xml"}, text, seen)
        if fault.status is not None:
            return self._answer(fault.status, fault.headers, fault.body or b"", seen, fault)
        if path not in owner._files:
            return self._answer(404, {}, b'{"error":"File not found"}', seen)
        content, etag = owner._files[path]
        content = fault.body if fault.body is not None else content
        status, headers, start = 200, {"ETag": etag, "Accept-Ranges": "bytes"}, 0
        headers["Content-Type"] = "binary/octet-stream"
        if "range" in seen.headers and not fault.ignore_range:
            start = seen.start
            if start >= len(content):
                headers["Content-Range"] = f"bytes */{len(content)}"
                return self._answer(416, headers | fault.headers, b"no such range", seen)
            status = 206
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        return self._answer(status, headers | fault.headers, content[start:], seen, fault)

    def _answer(
        self,
        status: int,
        headers: dict[str, str],
        body: bytes,
        seen: Seen,
        fault: Fault | None = None,
    ) -> None:
        fault = fault or Fault()
        length = {"Transfer-Encoding": "chunked"} if fault.chunked else {}
        length = length or {"Content-Length": str(len(body))}
        self.send_response(status)
        for name, value in (length | headers).items():
            if value:
                self.send_header(name, value)
        self.end_headers()
        self.owner.open.wait()
        end = len(body) if fault.cut_after is None else min(fault.cut_after, len(body))
        try:
            for at in range(0, end, self.owner._piece):
                piece = body[at : min(at + self.owner._piece, end)]
                self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece) if fault.chunked else piece)
                seen.sent += len(piece)
                self.owner.on_sent(seen)
            if fault.chunked and fault.cut_after is None:
                self.wfile.write(b"0\r\n\r\n")
        except OSError:  # the client left
            self.close_connection = True
        announced = (length | headers).get("Content-Length")
        if fault.cut_after is not None or (announced and int(announced) != end):
            self.close_connection = True
            if fault.reset:
                linger = struct.pack("ii", 1, 0)
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
