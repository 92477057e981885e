"""A verified download over loopback against `curl` followed by `sha256sum`."""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_HEADER_BYTES = 160


def main(argv: Sequence[str]) -> dict[str, Any]:
    """Download one file by turns with the pack's downloader and with curl and sha256sum.

    Both fetch from the same process, which sends the file with `sendfile`, into the same folder,
    and know the SHA-256 at their end. Ours runs in a process of its own, with its imports before
    the clock, and flushes to disk, which curl does not.

    Args:
        argv: `--mb` (1024 MiB), `--rounds` (3).

    Returns:
        Medians of `ours_seconds`, `curl_seconds` and `sha256sum_seconds`; `ratio` of ours to the
        two others together (the median over rounds; below 1 is faster); `memory_mb`, by how much
        the peak of our process grew during the download (None where the system does not say).
    """
    parser = argparse.ArgumentParser(prog="download", description="Download and verify a file.")
    parser.add_argument("--mb", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args(argv)
    missing = [tool for tool in ("curl", "sha256sum") if shutil.which(tool) is None]
    if missing:
        raise RuntimeError(f"This compares with {' and '.join(missing)}: install it first.")
    rounds: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as directory:
        root = Path(directory)
        digest = _write_model(root / "served.safetensors", options.mb << 20)
        with _serve(root / "served.safetensors") as url:
            for _ in range(options.rounds):
                ours = _ours(url, root / "ours", digest, options.mb << 20)
                theirs = _theirs(url, root / "theirs.safetensors", digest)
                rounds.append(ours | theirs)
    both = [row["curl"] + row["sha256sum"] for row in rounds]
    memory = [row["memory"] for row in rounds if row["memory"] >= 0]
    return {
        "mb": options.mb,
        "rounds": options.rounds,
        "ours_seconds": round(statistics.median(row["seconds"] for row in rounds), 3),
        "curl_seconds": round(statistics.median(row["curl"] for row in rounds), 3),
        "sha256sum_seconds": round(statistics.median(row["sha256sum"] for row in rounds), 3),
        "ratio": round(
            statistics.median(row["seconds"] / b for row, b in zip(rounds, both, strict=True)), 3
        ),
        "memory_mb": round(max(memory), 1) if memory else None,
    }


def _write_model(path: Path, size: int) -> str:
    """A sound safetensors file of `size` bytes; its SHA-256."""
    values = size - 8 - _HEADER_BYTES
    header = {"w": {"dtype": "U8", "shape": [values], "data_offsets": [0, values]}}
    start = _HEADER_BYTES.to_bytes(8, "little") + json.dumps(header).encode().ljust(_HEADER_BYTES)
    block, digest = random.Random(0).randbytes(1 << 20), hashlib.sha256(start)
    with path.open("wb") as file:
        file.write(start)
        for at in range(0, values, len(block)):
            piece = block[: values - at]
            file.write(piece)
            digest.update(piece)
    return digest.hexdigest()


@contextmanager
def _serve(path: Path) -> Iterator[str]:
    command = [sys.executable, "-c", _SERVER, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        try:
            yield f"http://127.0.0.1:{process.stdout.readline().strip()}/{path.name}"
        finally:
            process.kill()


_SERVER = """
import socket, sys
from pathlib import Path
path = Path(sys.argv[1])
server = socket.create_server(("127.0.0.1", 0))
print(server.getsockname()[1], flush=True)
while True:
    client, _ = server.accept()
    with client, path.open("rb") as file:
        while b"\\r\\n\\r\\n" not in client.recv(65536):
            pass
        size = path.stat().st_size
        client.sendall(b"HTTP/1.1 200 OK\\r\\nETag: \\"1\\"\\r\\nConnection: close\\r\\n"
                       b"Content-Length: %d\\r\\n\\r\\n" % size)
        client.sendfile(file)
"""

_DOWNLOAD = """
import json, sys, time
from pathlib import Path
import requests, urllib3
from intelligent_generation.core.catalog import read_header
from intelligent_generation.core.hubs.download import DownloadRequest, download
from intelligent_generation.core.hubs.http import Http, Pace
try:
    import resource
    unit = 1 if sys.platform == "darwin" else 1024
    def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
except ImportError:
    def peak(): return None
url, folder, sha256, size = sys.argv[1:]
request = DownloadRequest("civitai", url, Path(folder), "m.safetensors", int(size), sha256)
before, start = peak(), time.perf_counter()
download(request, http=Http(), pace=Pace(), check=read_header)
seconds = time.perf_counter() - start
print(json.dumps({"seconds": seconds, "memory": -1 if before is None else peak() - before}))
"""


def _ours(url: str, folder: Path, digest: str, size: int) -> dict[str, float]:
    command = [sys.executable, "-c", _DOWNLOAD, url, str(folder), digest, str(size)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"The download failed:\n{done.stderr}")
    shutil.rmtree(folder)
    return json.loads(done.stdout.splitlines()[-1])


def _theirs(url: str, path: Path, digest: str) -> dict[str, float]:
    start = time.perf_counter()
    subprocess.run(["curl", "-sSf", "-o", str(path), url], check=True)
    fetched = time.perf_counter()
    done = subprocess.run(["sha256sum", str(path)], capture_output=True, text=True, check=True)
    hashed = time.perf_counter()
    if done.stdout.split()[0].lstrip("\\") != digest:
        raise RuntimeError("sha256sum says that curl's file is not the one that was served.")
    path.unlink()
    return {"curl": fetched - start, "sha256sum": hashed - fetched}
