"""One downloader for both hubs: resumed, verified, and only then given its name.

The bytes go to `NAME.part` beside the target, what they belong to to `NAME.part.json`, and
`NAME.part.lock` keeps a second writer out. A thread reads the network and writes the disk,
while the caller's thread computes the SHA-256 of what is written; memory stays flat.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import queue
import re
import shutil
import threading
import time
import unicodedata
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple
from urllib.parse import parse_qsl, urlsplit

from ..errors import DownloadError, HubBusyError, ModelFileError
from ..filelock import one_writer
from .answers import HUB_NAMES, failure, retry_after
from .entries import Hub
from .http import (
    Answer,
    Effects,
    Failure,
    Http,
    Pace,
    lower_case,
    persist,
    same_origin,
    unreachable,
    without_query,
)

if TYPE_CHECKING:
    import requests

_log = logging.getLogger(__name__)

BLOCK_BYTES = 1 << 20
"""What is read, written and hashed at once, at most; also what a killed process loses at most."""

_SAFE_KINDS = {".safetensors", ".sft", ".gguf", ".json", ".txt", ".yaml", ".yml"}
_PICKLE_KINDS = {".ckpt", ".pt", ".pt2", ".pth", ".bin", ".pkl"}
_TEXT_KINDS = {".json", ".txt", ".yaml", ".yml"}
_CHECKED_KINDS = {".safetensors", ".sft"}
_FIRST_READ = 1 << 16
_QUEUED_BLOCKS = 4
_SYNC_BYTES = 64 << 20  # what a power cut loses at most
_SPARE_BYTES = 64 << 20  # left free on the disk
_MAX_REFUSAL = 1 << 16  # bytes read of an answer that is not the file
_TICK = 0.2  # seconds between two looks at `stop`
_LOG_SECONDS = 10.0


@dataclass(frozen=True)
class DownloadRequest:
    """One file to fetch, and what was promised of it."""

    hub: Hub
    url: str
    """http or https; without a token, which belongs into `authorization`."""
    folder: Path
    """Where the file goes; made when missing."""
    name: str
    """The file's name as the hub gives it, untrusted."""
    size: int | None = None
    """Exact bytes; None when the hub does not say, or rounds."""
    sha256: str | None = None
    """Hex of the whole file; None when the hub does not say."""
    authorization: str | None = field(default=None, repr=False)
    """Value of the Authorization header. The URL's own host alone gets it."""
    allow_pickle: bool = False
    """Whether a file that can run code when loaded (.ckpt, .pt, .bin ...) is fetched at all."""


class DownloadProgress(NamedTuple):
    """Where a download stands."""

    phase: Literal["waiting", "checking", "downloading"]
    """waiting: for another process that fetches the same file, or for the hub; checking: what is
    on disk already is read."""
    done: int
    """Bytes of the file that are there."""
    total: int | None
    """Bytes of the whole file; None when nobody says."""
    bytes_per_second: float
    """Over the last seconds; 0 before the first byte."""
    seconds_left: float | None
    """None when not known."""


class Downloaded(NamedTuple):
    """A file that is there, complete and checked."""

    path: Path
    size: int
    sha256: str | None
    """Lower-case hex; None for a file that was there and whose hash nobody had to know."""
    fetched: int
    """Bytes that came over the network; 0 when the file was there."""
    seconds: float


# Windows: https://learn.microsoft.com/windows/win32/fileio/naming-a-file
_RESERVED = re.compile(r'[<>:"|?*/\\]')
_DEVICE = re.compile(
    r"(CON|PRN|AUX|NUL|CONIN\$|CONOUT\$|(COM|LPT)[0-9¹²³])\s*(\.|$)", re.IGNORECASE
)
_HIDDEN_CATEGORIES = {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"}  # control, format (bidi), surrogates ...
PAUSES = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6)
"""Seconds between tries to rename a file that Windows says is in use."""
_WINDOWS_PATH = 259  # characters, unless long paths are switched on
_MAX_NAME_BYTES = 255 - len(".0123456789.mismatch")


def safe_name(name: str) -> str:
    """A file name from a hub, when it is one on every system; in Unicode's composed form.

    Raises:
        DownloadError: it holds path parts, characters that some system reserves, control or
            invisible characters, is a Windows device, starts or ends with a dot or space, or is
            empty or too long.
    """
    composed = unicodedata.normalize("NFC", name)
    if not composed.strip(". "):
        problem = "is empty"
    elif any(sign in composed for sign in "/\\"):
        problem = "holds parts of a path"
    elif found := _RESERVED.search(composed):
        problem = f"holds the reserved character {found.group()!r}"
    elif any(unicodedata.category(sign) in _HIDDEN_CATEGORIES for sign in composed):
        problem = "holds control or invisible characters"
    elif _DEVICE.match(composed):
        problem = "is the name of a device on Windows"
    elif composed[0] in ". " or composed[-1] in ". ":
        problem = "starts or ends with a dot or a space"
    elif len(composed.encode("utf-8")) > _MAX_NAME_BYTES:
        problem = f"is longer than {_MAX_NAME_BYTES} bytes"
    else:
        return composed
    raise DownloadError(
        f"The file name {name[:200]!r} that the hub gives {problem}. Nothing was downloaded; "
        "choose a name of your own for it."
    )


def free_bytes(folder: Path) -> int:
    """Bytes that may still be written to the disk of `folder`."""
    return shutil.disk_usage(folder).free


def download(
    request: DownloadRequest,
    *,
    http: Http,
    pace: Pace,
    check: Callable[[Path], object],
    on_progress: Callable[[DownloadProgress], object] = lambda progress: None,
    sha256_of: Callable[[Path], str] | None = None,
    effects: Effects | None = None,
    free: Callable[[Path], int] = free_bytes,
) -> Downloaded:
    """Make the file of `request` present: complete, of the promised length, hash and kind.

    A file already there with the promised hash (or length, when no hash is known) is left as it
    is. One that was begun goes on where it stopped, when the server still has the same content.
    Content with a wrong hash is kept as `NAME.<first ten of its hash>.mismatch` and never gets
    the file's name. A cut after at least `BLOCK_BYTES` of new bytes costs no try.

    Args:
        http, pace: how and how often this hub is asked.
        check: called with a complete .safetensors file before it gets its name; raises
            ModelFileError when it is not sound (`catalog.read_header`).
        on_progress: called a few times a second, in this thread.
        sha256_of: how to get the hash of a file that is there already (`Catalog.sha256` knows
            most without reading them); the file is read when None.
        effects: time, chance and `stop`, which is asked a few times a second. What is on disk
            when it raises is kept for the next time.
        free: bytes free on a folder's disk.

    Raises:
        DownloadError: a name, kind or address that is refused; another file of that name; no
            space, or a folder that cannot be written; wrong length, hash or content.
        HubAccessError, HubNotFoundError: the hub refuses, or has no such file.
        HubBusyError: busy, or cut off without a new byte, at every try.
        HubError: unreachable, or an answer that is not understood.
        ModelFileError: the file that is there already is not sound.
    """
    name = _checked_name(request)
    _check_url(request.url)
    files = _Files.of(request.folder, name)
    effects = effects or Effects()
    meter = _Meter(effects, on_progress, name, request.size)
    started = effects.clock()

    def present() -> Downloaded:
        digest = _check_present(request, files.target, check, sha256_of, meter)
        seconds = effects.clock() - started
        return Downloaded(files.target, files.target.stat().st_size, digest, 0, seconds)

    def wait_for_other() -> None:
        with suppress(OSError):
            meter.show("waiting", files.part.stat().st_size)
        effects.stop()
        effects.sleep(_TICK)

    try:
        if files.target.exists():
            return present()
        request.folder.mkdir(parents=True, exist_ok=True)
        with one_writer(files.lock, wait_for_other):
            if files.target.exists():  # another process was faster
                return present()
            job = _Job(_Task(request, files, http, effects, free), pace, meter)
            digest = job.fetch()
            size = _give_name(request, files, digest, check)
    except OSError as error:
        raise _disk_error(error, files) from error
    meter.show("downloading", size, now=True)
    _log.info("%s is complete (%.0f MB, SHA-256 %s).", files.target, size / 1e6, digest)
    return Downloaded(files.target, size, digest, job.fetched, effects.clock() - started)


# --------------------------------------------------------------------- what is asked for


def _checked_name(request: DownloadRequest) -> str:
    name = safe_name(request.name)
    kind = Path(name).suffix.lower()
    if kind in _PICKLE_KINDS and not request.allow_pickle:
        raise DownloadError(
            f"{name} is a pickle file, which can run any code when it is loaded. Choose a "
            "safetensors version of the model, or allow pickle files if you trust its maker."
        )
    if kind not in _SAFE_KINDS | _PICKLE_KINDS:
        raise DownloadError(
            f"{name} is no model file: only {', '.join(sorted(_SAFE_KINDS))} are downloaded."
        )
    return name


def _check_url(url: str) -> None:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise DownloadError(f"{without_query(url)!r} is not a web address of a file.")
    secrets = {key.lower() for key, _ in parse_qsl(parts.query)} & {"token", "api_key"}
    if secrets or "@" in parts.netloc:
        raise DownloadError(
            f"The address {without_query(url)} carries a login or token. Save the token in the "
            "settings and leave it out of the address."
        )


# --------------------------------------------------------------------- what is on disk


class _Files(NamedTuple):
    target: Path
    part: Path
    state: Path
    lock: Path

    @classmethod
    def of(cls, folder: Path, name: str) -> _Files:
        target = folder / name
        return cls(target, *(folder / f"{name}.part{end}" for end in ("", ".json", ".lock")))


class _State(NamedTuple):
    """What the bytes of a .part belong to."""

    url: str
    """Without query."""
    etag: str | None
    """The ETag, or else Last-Modified."""
    size: int | None
    sha256: str | None

    def serves(self, request: DownloadRequest) -> bool:
        if self.size and request.size and self.size != request.size:
            return False
        if self.sha256 and request.sha256:
            return self.sha256.lower() == request.sha256.lower()
        # Without a hash only the server's own mark tells whether the content is still the same.
        return self.url == without_query(request.url) and self.etag is not None


def _load_state(path: Path) -> _State | None:
    try:
        return _State(**json.loads(path.read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def _save_state(path: Path, state: _State) -> None:
    fresh = path.with_name(path.name + ".new")
    fresh.write_text(json.dumps(state._asdict()), encoding="utf-8")
    replace(fresh, path)


def _check_present(
    request: DownloadRequest,
    path: Path,
    check: Callable[[Path], object],
    sha256_of: Callable[[Path], str] | None,
    meter: _Meter,
) -> str | None:
    size, digest = path.stat().st_size, None
    if request.size is not None and size != request.size:
        raise _other_file(path, f"{size:,} bytes instead of {request.size:,}")
    if request.sha256:
        if sha256_of:
            digest = sha256_of(path).lower()
        else:
            with path.open("rb") as file:
                digest = _hash_file(file, size, meter).hexdigest()
        if digest != request.sha256.lower():
            raise _other_file(path, f"SHA-256 {digest[:10]}… instead of {request.sha256[:10]}…")
    if path.suffix.lower() in _CHECKED_KINDS:
        check(path)
    return digest


def _other_file(path: Path, difference: str) -> DownloadError:
    return DownloadError(
        f"Another file of that name is already there: {path} ({difference}). It was left as it "
        "is. Rename or move it, then download again."
    )


def _give_name(
    request: DownloadRequest, files: _Files, digest: str, check: Callable[[Path], object]
) -> int:
    name, wanted = files.target.name, request.sha256
    problem = None
    if wanted and digest != wanted.lower():
        problem = f"{name} is not what {HUB_NAMES[request.hub]} lists: its SHA-256 is {digest}, "
        problem += f"and should be {wanted.lower()}."
    elif files.target.suffix.lower() in _CHECKED_KINDS:
        try:
            check(files.part)
        except ModelFileError as error:
            problem = f"{name}, as {HUB_NAMES[request.hub]} has it, is no sound model: {error}"
    if problem:
        kept = files.target.with_name(f"{name}.{digest[:10]}.mismatch")
        replace(files.part, kept)
        files.state.unlink(missing_ok=True)
        raise DownloadError(
            f"{problem} It will not be loaded. It is kept as {kept} for you to look at or "
            "delete; downloading again starts from the beginning."
        )
    if files.target.exists():
        raise _other_file(files.target, "it appeared during the download")
    replace(files.part, files.target)
    files.state.unlink(missing_ok=True)
    _sync_folder(files.target.parent)
    return files.target.stat().st_size


def replace(
    source: Path,
    target: Path,
    *,
    move: Callable[[Path, Path], object] = Path.replace,
    sleep: Callable[[float], object] = time.sleep,
    pauses: Sequence[float] = PAUSES if os.name == "nt" else (),
) -> None:
    """Give a file another name, over a file that has it. Windows refuses while a virus scanner or
    indexer looks at a new file, so there it is tried again for about three seconds."""
    for pause in pauses:
        try:
            move(source, target)
        except PermissionError:
            sleep(pause)
        else:
            return
    move(source, target)


def _hash_file(file: Any, size: int, meter: _Meter) -> Any:
    digest, done = hashlib.sha256(), 0
    while done < size and (block := file.read(min(BLOCK_BYTES, size - done))):
        digest.update(block)
        done += len(block)
        meter.show("checking", done)
    return digest


def _disk_error(error: OSError, files: _Files) -> DownloadError:
    kept = f" What was fetched is kept in {files.part.name}." if _is_there(files.part) else ""
    reason = error.strerror or type(error).__name__
    advice = _advice(error.errno, str(files.part), windows=os.name == "nt")
    return DownloadError(f"{files.target} cannot be written: {reason}.{kept} {advice}")


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name that the system does not take
        return False


def _advice(number: int | None, path: str, *, windows: bool) -> str:
    if number in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT):
        return "Free space on its disk and download again: it goes on where it stopped."
    # Windows calls a path that is too long one that does not exist.
    if number == errno.ENAMETOOLONG or (windows and len(path) > _WINDOWS_PATH):
        return (
            f"The path has {len(path)} characters, which this system does not take. Move ComfyUI "
            "nearer to the root of its disk, or switch long paths on in Windows."
        )
    if number == errno.EACCES and windows:
        return "Close programs that have it open, see that the folder is writable, and try again."
    return "See that the folder exists and is writable, and download again."


# --------------------------------------------------------------------- progress


class _Meter:
    """Tells progress a few times a second, and every ten seconds in the log."""

    def __init__(
        self,
        effects: Effects,
        on_progress: Callable[[DownloadProgress], object],
        name: str,
        total: int | None,
    ) -> None:
        self.total = total
        self._effects, self._on_progress, self._name = effects, on_progress, name
        self._marks: deque[tuple[float, int]] = deque(maxlen=25)  # five seconds of them
        self._shown = self._logged = effects.clock()

    def restart(self, done: int) -> None:
        """Measure the speed from here on."""
        self._marks.clear()
        self._marks.append((self._effects.clock(), done))

    def show(
        self, phase: Literal["waiting", "checking", "downloading"], done: int, *, now: bool = False
    ) -> None:
        moment = self._effects.clock()
        if not now and moment - self._shown < _TICK:
            return
        self._shown = moment
        self._effects.stop()
        speed, left = self._speed(moment, done)
        progress = DownloadProgress(phase, done, self.total, speed, left)
        self._on_progress(progress)
        if moment - self._logged >= _LOG_SECONDS:
            self._logged = moment
            _log.info("%s", progress_line(self._name, progress))

    def _speed(self, now: float, done: int) -> tuple[float, float | None]:
        self._marks.append((now, done))
        then, before = self._marks[0]
        speed = (done - before) / (now - then) if now > then else 0.0
        left = (self.total - done) / speed if self.total is not None and speed > 0 else None
        return speed, left


def progress_line(name: str, progress: DownloadProgress) -> str:
    """Where a download stands, for a person: bytes, speed and time left."""
    phase, done, total, speed, left = progress
    of = f" of {total / 1e6:,.0f}" if total is not None else ""
    rest = f", {left:,.0f} s left" if left is not None else ""
    return f"{name}: {phase}, {done / 1e6:,.0f}{of} MB, {speed / 1e6:,.1f} MB/s{rest}"


# --------------------------------------------------------------------- what a server says


class _Start(NamedTuple):
    """What an answer's body holds."""

    offset: int
    total: int | None
    etag: str | None


class _ChangedError(Exception):
    """What is on disk is of no use: the file changed at the server."""


class _FailedError(Exception):
    """An attempt that did not work."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(str(failure.error))
        self.failure = failure


_RANGE = re.compile(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)$")


def _body(status: int, headers: Mapping[str, str], offset: int, etag: str | None) -> _Start | None:
    """What a 200, 206 or 416 answer to `Range: bytes=<offset>-` holds; None: an error.

    `headers` in lower case; `etag` is what the bytes on disk were marked with.
    """
    mark = headers.get("etag") or headers.get("last-modified")
    mark = mark.removeprefix("W/") if mark else None
    changed = bool(mark and etag and mark != etag)
    if status == 200:
        length = headers.get("content-length", "")
        return _Start(0, int(length) if length.isdecimal() else None, mark)
    if status not in (206, 416) or not offset:
        return None
    match = _RANGE.match(headers.get("content-range", ""))
    first, total = match.groups() if match else (None, "*")
    size = int(total) if total.isdecimal() else None
    if status == 416 and size == offset and not changed:
        return _Start(offset, offset, mark or etag)  # nothing comes after what is there
    if status == 416 or changed or first is None or int(first) != offset:
        raise _ChangedError
    return _Start(offset, size, mark or etag)


def _is_page(kind: str, content_type: str, start: bytes) -> bool:
    said = content_type.partition(";")[0].strip().lower()
    if said in ("text/html", "application/xhtml+xml"):
        return True
    # "<" and "{" may also begin the length of a safetensors header; then byte 8 is "{".
    marked = start.lstrip()[:1] in (b"<", b"{") and start[8:9] != b"{"
    return kind not in _TEXT_KINDS and (marked or said == "application/json")


# --------------------------------------------------------------------- the transfer


class _Task(NamedTuple):
    request: DownloadRequest
    files: _Files
    http: Http
    effects: Effects
    free: Callable[[Path], int]


class _Job:
    """Fetches what is missing of one file, while it holds the lock."""

    def __init__(self, task: _Task, pace: Pace, meter: _Meter) -> None:
        self._task, self._pace, self._meter = task, pace, meter
        self._state: _State | None = None
        self._digest: Any = hashlib.sha256()
        self._offset = 0  # bytes written and hashed
        self._highest = 0
        self.fetched = 0

    def fetch(self) -> str:
        """Complete the .part; the SHA-256 of its content."""
        request, files, _, effects, _ = self._task
        _log.info("Downloading %s from %s.", files.target, urlsplit(request.url).hostname)
        try:
            with _open_part(files.part) as file:
                self._resume(file)
                complete = self._state is not None and self._offset == self._state.size
                while not complete:
                    complete = persist(
                        lambda: self._attempt(file), pace=self._pace, effects=effects
                    )
                os.fsync(file.fileno())
        except BaseException:
            if not files.part.stat().st_size:
                files.part.unlink()
                files.state.unlink(missing_ok=True)
            raise
        return self._digest.hexdigest()

    def _resume(self, file: Any) -> None:
        request, files = self._task.request, self._task.files
        state, size = _load_state(files.state), os.fstat(file.fileno()).st_size
        if state is None or not state.serves(request) or size > (state.size or size):
            return
        self._state, self._meter.total = state, state.size or request.size
        self._meter.restart(0)
        self._digest = _hash_file(file, size, self._meter)
        self._offset = self._highest = size

    def _attempt(self, file: Any) -> bool | Failure:
        """Whether the file is complete; false when it was cut off after a good stretch."""
        reader = _Reader(self._task, file, self._offset, self._state)
        self._meter.restart(self._offset)
        reader.start()
        try:
            self._follow(reader)
            return True
        except _ChangedError:
            name = self._task.files.target.name
            _log.info("%s changed at the hub: starting anew.", name)
            self._offset, self._digest, self._state = 0, hashlib.sha256(), None
            error = DownloadError(f"{name} changes at the hub while it is fetched. Try later.")
            return Failure(error, again=True, wait=0.0)
        except _FailedError as trouble:
            self._meter.show("waiting", self._offset, now=True)
            return self._offset < self._highest + BLOCK_BYTES and trouble.failure
        finally:
            reader.end()
            self.fetched += reader.received
            self._highest = max(self._highest, self._offset)

    def _follow(self, reader: _Reader) -> None:
        while True:
            try:
                message = reader.messages.get(timeout=_TICK)
            except queue.Empty:
                self._meter.show("downloading", self._offset)
                self._task.effects.stop()
                continue
            if message is None:
                return
            if isinstance(message, BaseException):
                raise message
            if isinstance(message, _State):
                self._state, self._meter.total = message, message.size
                if self._offset != reader.offset:
                    self._offset, self._digest = reader.offset, hashlib.sha256()
                    self._meter.restart(self._offset)
            else:
                self._digest.update(message)
                self._offset += len(message)
                self._meter.show("downloading", self._offset)


class _Reader(threading.Thread):
    """Asks for the rest of the file and writes it; `messages` tells what was written.

    The messages are a _State, then blocks, then None or what went wrong. A daemon, since a
    server that stopped answering holds it until the time-out; after `end` it writes nothing.
    """

    def __init__(self, task: _Task, file: Any, offset: int, state: _State | None) -> None:
        super().__init__(name="download", daemon=True)
        self.messages: queue.Queue[_State | bytes | BaseException | None] = queue.Queue(
            _QUEUED_BLOCKS
        )
        self.offset = offset
        """Where the body begins, once the state was told."""
        self.received = 0
        self._task, self._request, self._name = task, task.request, task.files.target.name
        self._file, self._state = file, state
        self._unsynced = 0
        self._gate = threading.Lock()
        self._ended = False

    def end(self) -> None:
        """Let it write nothing more; the file may be closed after this."""
        with self._gate:
            self._ended = True

    def run(self) -> None:
        with suppress(_EndedError):
            try:
                self._transfer()
                self._tell(None)
            except _EndedError:
                raise
            except BaseException as problem:
                self._tell(problem)

    def _tell(self, message: _State | bytes | BaseException | None) -> None:
        while not self._ended:
            with suppress(queue.Full):
                return self.messages.put(message, timeout=_TICK)
        raise _EndedError

    def _transfer(self) -> None:
        import requests

        request = self._request
        headers = {"Accept-Encoding": "identity"}
        if self.offset:
            headers["Range"] = f"bytes={self.offset}-"
        try:
            response = self._task.http.send(
                "GET", request.url, headers=headers, authorization=request.authorization
            )
        except requests.RequestException as problem:
            place = getattr(problem.request, "url", None) or request.url
            found = unreachable(HUB_NAMES[request.hub], place, problem)
            raise _FailedError(found) from None  # its text holds the query
        with response:
            told = lower_case(response.headers)
            start = _body(response.status_code, told, self.offset, self._state and self._state.etag)
            if start is None:
                raise _FailedError(self._refusal(response, told))
            start = self._agreed(start)
            if response.status_code != 416:
                self._copy(response, told.get("content-type", ""), start)

    def _agreed(self, start: _Start) -> _Start:
        wanted = self._request.size
        if None not in (start.total, wanted) and start.total != wanted:
            raise DownloadError(
                f"{self._name} has {start.total:,} bytes at the server, but "
                f"{HUB_NAMES[self._request.hub]} lists {wanted:,}: it was exchanged, or the "
                "answer is something else. Nothing was saved. Look the model up again."
            )
        known = self._state.size if self._state and start.offset else None
        if None not in (start.total, known) and start.total != known:
            raise _ChangedError
        return start._replace(total=wanted if start.total is None else start.total)

    def _copy(self, response: requests.Response, content_type: str, start: _Start) -> None:
        host, clock = urlsplit(response.url).hostname, self._task.effects.clock
        position, total, amount = start.offset, start.total, _FIRST_READ
        block = self._read(response, amount, position, total)
        if not position and _is_page(Path(self._name).suffix.lower(), content_type, block):
            raise DownloadError(
                f"{host} sent a web page or message instead of {self._name}: it wants a login, "
                "or something in between (a proxy, a filter) answered. Nothing was saved. Set a "
                f"token for {HUB_NAMES[self._request.hub]}, or open the model's page in a browser."
            )
        if block or not total:
            self._begin(start)
        while block:
            position += len(block)
            if total is not None and position > total:
                raise DownloadError(
                    f"{host} sends more than the {total:,} bytes of {self._name} that were "
                    "announced. Look the model up again."
                )
            self._write(block)
            self._tell(block)
            began = clock()
            block = self._read(response, amount, position, total)
            # Blocks of a quarter of a second or so, so that a slow line shows progress too.
            took = clock() - began
            amount = min(amount * 2, BLOCK_BYTES) if took < 0.1 else amount
            amount = max(amount // 2, _FIRST_READ // 4) if took > 0.5 else amount
        if total is not None and position < total:
            raise self._cut(response, position, total)

    def _read(
        self, response: requests.Response, amount: int, position: int, total: int | None
    ) -> bytes:
        from urllib3.exceptions import HTTPError

        try:
            block = response.raw.read(amount, decode_content=False)
        except (HTTPError, HTTPException, OSError):
            raise self._cut(response, position, total) from None
        self.received += len(block)
        return block

    def _cut(self, response: requests.Response, position: int, total: int | None) -> _FailedError:
        of = f" of {total:,}" if total is not None else ""
        return _FailedError(
            Failure(
                HubBusyError(
                    f"{urlsplit(response.url).hostname} cut off {self._name} after "
                    f"{position:,}{of} bytes. What is there is kept: download again to go on."
                ),
                again=True,
            )
        )

    def _begin(self, start: _Start) -> None:
        request, files = self._request, self._task.files
        state = _State(without_query(request.url), start.etag, start.total, request.sha256)
        with self._gate:
            if self._ended:
                raise _EndedError
            if not start.offset:
                self._file.truncate(0)
                _save_state(files.state, state)
            self._file.seek(start.offset)
            self.offset = start.offset
        missing, there = (start.total or 0) - start.offset, self._task.free(request.folder)
        if missing + _SPARE_BYTES > there:
            raise DownloadError(
                f"{self._name} needs {missing / 1e9:.2f} GB more, and the disk of "
                f"{request.folder} has {there / 1e9:.2f} GB free. Free some space, or choose a "
                "folder on another disk."
            )
        self._tell(state)

    def _write(self, block: bytes) -> None:
        with self._gate:
            if self._ended:
                raise _EndedError
            rest = memoryview(block)
            while rest:
                rest = rest[self._file.write(rest) :]
            self._unsynced += len(block)
            if self._unsynced >= _SYNC_BYTES:
                self._unsynced = 0
                os.fsync(self._file.fileno())

    def _refusal(self, response: requests.Response, told: dict[str, str]) -> Failure:
        from urllib3.exceptions import HTTPError

        request, status = self._request, response.status_code
        body = b""
        with suppress(HTTPError, HTTPException, OSError):
            body = response.raw.read(_MAX_REFUSAL, decode_content=True)
        answer = Answer(status, told, body, without_query(response.url))
        if status >= 400 and same_origin(request.url, response.url):
            return failure(
                request.hub,
                answer,
                what=self._name,
                has_token=request.authorization is not None,
            )
        # A hub's storage host: its links end after a while, and every try gets a new one.
        return Failure(
            HubBusyError(
                f"{urlsplit(response.url).hostname}, where {HUB_NAMES[request.hub]} keeps "
                f"{self._name}, answered with HTTP {status}. Try again later."
            ),
            again=True,
            throttled=status == 429,
            wait=retry_after(answer),
        )


class _EndedError(Exception):
    """Nobody waits for this attempt any more."""


def _open_part(path: Path) -> Any:
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOFOLLOW", 0)
    return os.fdopen(os.open(path, flags, 0o644), "r+b", buffering=0)


def _sync_folder(folder: Path) -> None:
    if os.name == "nt":
        return  # Windows has no such call
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network shares refuse
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
