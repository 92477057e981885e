"""The hubs' tokens: from the environment, else from files only the user may read.

A token leaves this module as the value of an Authorization header or as itself, never in a
message, a log line or a `repr`.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, get_args

from ..errors import SettingError
from .answers import HUB_NAMES, TOKEN_VARIABLES
from .entries import Hub

Status = Literal["set", "not set"]

_MOST = 4096  # characters; real tokens have 32 to about 1,000


class Credentials:
    """Tokens of the hubs.

    Args:
        folder: where `set` stores them, one file a hub; must not be reachable by HTTP.
        environment: `os.environ`, or another for tests. What it holds comes first.
    """

    def __init__(self, folder: Path, environment: Mapping[str, str] = os.environ) -> None:
        self._folder = folder
        self._environment = environment

    def __repr__(self) -> str:
        return f"Credentials({self.status()})"

    def token(self, hub: Hub) -> str | None:
        """The hub's token, None without one.

        Raises:
            SettingError: what is stored is no token, or cannot be read.
        """
        variable = self.variable(hub)
        if variable is not None:
            return _checked(hub, self._environment[variable], f"The variable {variable}")
        path = self._path(hub)
        try:
            text = path.read_text("ascii")
        except FileNotFoundError:
            return None
        except (OSError, UnicodeError) as error:
            raise SettingError(
                f"The stored {HUB_NAMES[hub]} token ({path}) cannot be read: "
                f"{type(error).__name__}. Set it again."
            ) from None
        _only_for_owner(path)
        return _checked(hub, text, f"The file {path}")

    def authorization(self, hub: Hub) -> str | None:
        """The value of the Authorization header for the hub, None without a token."""
        token = self.token(hub)
        return None if token is None else f"Bearer {token}"

    def set(self, hub: Hub, token: str) -> None:
        """Store a token, in a file that only the user may read. A token of the environment still
        comes first.

        Raises:
            SettingError: it is empty, holds blanks or other than ASCII, or cannot be written.
        """
        text = _checked(hub, token, "What was given")
        path = self._path(hub)
        partial = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            # 0600 from the first moment: a later chmod would leave a gap.
            with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as f:
                f.write(text)
                f.flush()
                os.fsync(f.fileno())
            partial.replace(path)
        except OSError as error:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
            raise SettingError(
                f"The {HUB_NAMES[hub]} token cannot be stored in {self._folder}: "
                f"{error.strerror or type(error).__name__}."
            ) from None

    def clear(self, hub: Hub) -> None:
        """Remove the stored token. One of the environment stays: `variable` names it.

        Raises:
            SettingError: the file cannot be removed.
        """
        try:
            self._path(hub).unlink(missing_ok=True)
        except OSError as error:
            raise SettingError(
                f"The stored {HUB_NAMES[hub]} token cannot be removed from {self._folder}: "
                f"{error.strerror or type(error).__name__}."
            ) from None

    def status(self) -> dict[Hub, Status]:
        """Whether each hub has a token. All that may be told to a browser."""
        hubs: tuple[Hub, ...] = get_args(Hub)
        return {hub: "set" if self.variable(hub) or self._path(hub).is_file() else "not set"
                for hub in hubs}  # fmt: skip

    def variable(self, hub: Hub) -> str | None:
        """Name of the environment variable that holds the hub's token; None when none does."""
        names = TOKEN_VARIABLES[hub]
        return next((name for name in names if self._environment.get(name, "").strip()), None)

    def _path(self, hub: Hub) -> Path:
        return self._folder / f"{hub}.token"


def _checked(hub: Hub, text: str, where: str) -> str:
    token = text.strip()
    if not token or len(token) > _MOST or not all("!" <= c <= "~" for c in token):
        raise SettingError(
            f"{where} is no {HUB_NAMES[hub]} token: a token is one word of letters, digits and "
            "signs. Copy it again from the site."
        )
    return token


def _only_for_owner(path: Path) -> None:
    # A copy or a restored backup may have come with wider rights. Windows keeps rights elsewhere.
    if os.name == "posix" and path.stat().st_mode & 0o077:
        with contextlib.suppress(OSError):
            path.chmod(0o600)
