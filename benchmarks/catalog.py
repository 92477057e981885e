"""Scanning a large LoRA library: first time, and when nothing changed, beside a live event loop."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from .headers import make_library


def main(argv: list[str]) -> dict[str, Any]:
    """Time `Catalog.scan()` over generated kohya LoRA files, each time in a new process.

    `first_seconds` is the first scan (headers, classification, database, no hashing) and
    `unchanged_seconds` the median of the scans after it. Both run in a thread, as in ComfyUI,
    while an asyncio loop wakes up every 5 ms: `*_longest_wait_ms` is the most that it was late,
    that is how long a request would have waited, and `*_p99_wait_ms` what one in a hundred
    exceeds. `idle_longest_wait_ms` is the same loop's with nothing else running, in the same run.
    `first_cpu_seconds` is what the first scan took of that process's processor time, which another
    program on the machine hardly changes; the headers are read by other processes.
    `library_seconds` is loading every entry for recommending, when nothing changed.

    Args:
        argv: `--files` (30000), `--repeats` (3) of the unchanged scan, `--modules` (6) and
            `--tags` (15) of each file, see the benchmark `headers`, `--seed`.
    """
    parser = argparse.ArgumentParser(prog="catalog", description="Scan a LoRA library.")
    parser.add_argument("--files", type=int, default=30_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--modules", type=int, default=6)
    parser.add_argument("--tags", type=int, default=15)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as directory:
        root = Path(directory)
        size = make_library(
            root / "loras",
            options.files,
            modules=options.modules,
            tags=options.tags,
            seed=options.seed,
        )
        first = _in_new_process(root)
        later = [_in_new_process(root) for _ in range(max(options.repeats, 1))]
    later.sort(key=lambda run: run["seconds"])
    middle = later[len(later) // 2]
    return {
        "files": options.files,
        "bytes_per_file": size // max(options.files, 1),
        "first_seconds": first["seconds"],
        "first_cpu_seconds": first["cpu_seconds"],
        "first_longest_wait_ms": first["longest_wait_ms"],
        "first_p99_wait_ms": first["p99_wait_ms"],
        "unchanged_seconds": middle["seconds"],
        "unchanged_seconds_of_each": [run["seconds"] for run in later],
        "unchanged_longest_wait_ms": max(run["longest_wait_ms"] for run in later),
        "idle_longest_wait_ms": max(run["idle_wait_ms"] for run in later),
        "library_seconds": middle["library_seconds"],
        "read": first["read"],
        "read_again": max(run["read"] for run in later),
    }


_SCAN = """
import asyncio, json, sys, threading, time
from pathlib import Path
from intelligent_generation.core.catalog import Catalog
from intelligent_generation.core.storage import Database
import intelligent_generation.core.catalog.refreshing
root = Path(sys.argv[1])
catalog = Catalog(Database.open(f"sqlite:///{root / 'catalog.db'}"), lambda folder: [root / folder])

async def waits(done):
    late = []
    while not done():
        start = time.perf_counter()
        await asyncio.sleep(0.005)
        late.append(time.perf_counter() - start - 0.005)
    return sorted(late)

async def main():
    until = time.perf_counter() + 0.5
    idle = await waits(lambda: time.perf_counter() > until)
    found = {}
    def scan():
        start, busy = time.perf_counter(), time.thread_time()
        found["report"] = catalog.scan(folders=["loras"])
        found["seconds"] = time.perf_counter() - start
        found["cpu"] = time.thread_time() - busy
    thread = threading.Thread(target=scan)
    thread.start()
    late = await waits(lambda: not thread.is_alive())
    start = time.perf_counter()
    catalog.loras()
    print(json.dumps({
        "seconds": round(found["seconds"], 3), "cpu_seconds": round(found["cpu"], 3),
        "read": found["report"].read,
        "longest_wait_ms": round(1000 * late[-1], 1),
        "p99_wait_ms": round(1000 * late[len(late) * 99 // 100], 1),
        "idle_wait_ms": round(1000 * idle[-1], 1),
        "library_seconds": round(time.perf_counter() - start, 3)}))

asyncio.run(main())
"""


def _in_new_process(root: Path) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-c", _SCAN, str(root)],
        capture_output=True,
        text=True,
        check=False,
        cwd=root,
    )
    if done.returncode != 0:
        raise RuntimeError(f"The scan failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])
