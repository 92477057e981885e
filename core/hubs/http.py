"""One way to speak to both hubs: pace, tries, waiting that can be stopped, safe redirects.

`persist` decides when to try again and is used for both; `Http` sends requests for what does not
go through huggingface_hub.
"""

from __future__ import annotations

import ipaddress
import logging
import random
import threading
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar
from urllib.parse import urljoin, urlsplit, urlunsplit

from ..errors import HubBusyError, HubError, SettingError

if TYPE_CHECKING:
    import requests

log = logging.getLogger(__name__)
T = TypeVar("T")

USER_AGENT = "intelligent-generation (+https://github.com/intelligent-generation)"
"""CivitAI answers a name of a browser (mozilla, chrome, safari, edge ...) with its login page."""
TIMEOUT = (10.0, 30.0)
"""Seconds to connect, and to wait for the next bytes."""
TRIES = 5
REQUESTS_PER_SECOND = 1.0
"""Requirement 1.6's default; a hub that asks for less gets less."""
MAX_WAIT = 300.0
"""Longest wait a hub is granted before a try, seconds: Hugging Face's window for its limits."""
MAX_BODY = 64 << 20
"""Bytes of one answer that is not a file."""

_MAX_BACKOFF = 30.0  # CivitAI's documentation advises 1 to 30 s
_MAX_INTERVAL = 30.0
_RECOVERY = 0.9
_MAX_REDIRECTS = 5
_NO_PROXIES: Any = {"http": None, "https": None, "all": None}
_SLICE = 0.2  # seconds between looks at `stop` while waiting


def never() -> None:
    """A `stop` that never stops."""


class Effects(NamedTuple):
    """Time and chance, as arguments. All seconds."""

    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    random: Callable[[], float] = random.random
    """In [0, 1)."""
    stop: Callable[[], None] = never
    """Called often while waiting and reading; raises to end it."""


class Answer(NamedTuple):
    """What a hub answered."""

    status: int
    headers: Mapping[str, str]
    """Names in lower case."""
    body: bytes
    url: str
    """Without its query."""


class Failure(NamedTuple):
    """A try that did not work."""

    error: HubError
    """What to raise when it is not tried again."""
    again: bool = False
    """Whether the same request may work later."""
    throttled: bool = False
    """The hub wants fewer requests."""
    wait: float | None = None
    """Seconds that the hub asks for."""


class Pace:
    """Moments at which requests to one hub may start. Shared by threads.

    Never faster than `per_second`. A hub that says "too many requests" doubles the interval, up
    to 30 s; each answer after that shortens it by a tenth until it is back.
    """

    def __init__(self, per_second: float = REQUESTS_PER_SECOND) -> None:
        if not per_second > 0:
            raise SettingError(f"Requests per second must be above 0, not {per_second}.")
        self._floor = 1 / per_second
        self._interval = self._floor
        self._next = float("-inf")
        self._lock = threading.Lock()

    @property
    def interval(self) -> float:
        """Seconds between the starts of two requests now."""
        return self._interval

    def reserve(self, now: float) -> float:
        """Take the next free moment; seconds until it."""
        with self._lock:
            start = max(now, self._next)
            self._next = start + self._interval
            return start - now

    def slow_down(self, now: float, wait: float) -> None:
        """The hub wants fewer requests, and none for `wait` seconds."""
        with self._lock:
            self._interval = min(max(self._interval * 2, self._floor), _MAX_INTERVAL)
            self._next = max(self._next, now + wait)

    def speed_up(self) -> None:
        """A request was answered."""
        with self._lock:
            self._interval = max(self._floor, self._interval * _RECOVERY)


def persist(
    attempt: Callable[[], T | Failure], *, pace: Pace, effects: Effects, tries: int = TRIES
) -> T:
    """Try until it works, it is hopeless, or `tries` are used up.

    Waits what the hub asks for, else `backoff`.

    Raises:
        HubError: the last try's error.
        HubBusyError: the hub wants a longer wait than `MAX_WAIT`.
    """
    for number in range(1, tries + 1):
        wait(pace.reserve(effects.clock()), effects)
        effects.stop()
        outcome = attempt()
        if not isinstance(outcome, Failure):
            pace.speed_up()
            return outcome
        delay = outcome.wait if outcome.wait is not None else backoff(number, effects.random())
        if outcome.throttled:
            pace.slow_down(effects.clock(), min(delay, MAX_WAIT))
        if not outcome.again:
            raise outcome.error
        if delay > MAX_WAIT:
            raise HubBusyError(
                f"{outcome.error} It asks to wait {delay / 60:.0f} minutes. Try again then."
            )
        if number == tries:
            raise type(outcome.error)(f"{outcome.error} It was tried {tries} times.")
        log.info("%s Next try in %.0f s (%d of %d).", outcome.error, delay, number + 1, tries)
        if not outcome.throttled:
            wait(delay, effects)
    raise SettingError("At least one try is needed.")


def backoff(number: int, chance: float) -> float:
    """Seconds to wait after try `number` (from 1): 1, 2, 4 ... to 30, half of it by chance."""
    return min(2.0 ** (number - 1), _MAX_BACKOFF) * (0.5 + chance / 2)


def wait(seconds: float, effects: Effects) -> None:
    """Sleep, asking `stop` five times a second."""
    end = effects.clock() + seconds
    while (left := end - effects.clock()) > 0:
        effects.stop()
        effects.sleep(min(left, _SLICE))


def unreachable(hub: str, url: str, problem: BaseException) -> Failure:
    """A request that got no answer. `problem` names the reason, never the address' query."""
    host = urlsplit(url).netloc
    reason = type(problem).__name__
    final = reason in ("SSLError", "InvalidURL", "InvalidSchema", "InvalidProxyURL")
    return Failure(
        HubError(
            f"{hub} cannot be reached at {host} ({reason}). Check the network connection"
            f"{', the certificates' if reason == 'SSLError' else ''} and the proxy settings."
        ),
        again=not final,
    )


def is_loopback(url: str) -> bool:
    """Whether the address is this machine: proxies are never asked for it."""
    host = (urlsplit(url).hostname or "").rstrip(".")
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def same_origin(one: str, other: str) -> bool:
    """Same scheme, host and port: the only place that an Authorization header may go to."""
    return _origin(one) == _origin(other)


def may_carry_token(url: str) -> bool:
    """Tokens travel encrypted, or stay on this machine."""
    return urlsplit(url).scheme == "https" or is_loopback(url)


def without_query(url: str) -> str:
    """The address without user, query and fragment: what logs, errors and records may hold."""
    scheme, netloc, path, _, _ = urlsplit(url)
    return urlunsplit((scheme, netloc.rpartition("@")[2], path, "", ""))


def endpoint(value: str, setting: str) -> str:
    """A hub's base address as configured: no slash at its end, no `/api/v1`.

    Raises:
        SettingError: it is no http or https address.
    """
    address = value.strip().rstrip("/").removesuffix("/api/v1")
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc:
        raise SettingError(
            f"{setting} must be an address such as https://example.org, "
            f"not {without_query(address)!r}."
        )
    return without_query(address)


class Http:
    """Requests with our User-Agent and redirects of our own. Safe to share between threads.

    Proxies and certificate settings of the environment hold (never for loopback); logins in a
    `.netrc` are not used.
    """

    def __init__(self, *, timeout: tuple[float, float] = TIMEOUT) -> None:
        self._timeout = timeout
        self._lock = threading.Lock()
        self._session: requests.Session | None = None

    def send(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        authorization: str | None = None,
        params: Mapping[str, Any] | None = None,
        json: Any = None,
    ) -> requests.Response:
        """Send one request and follow its redirects; the body is left to be read (and closed).

        `authorization` goes to `url`'s own origin only, also when a redirect leads back.

        Raises:
            requests.RequestException: no answer.
        """
        import requests

        first = url
        for _ in range(_MAX_REDIRECTS + 1):
            own = dict(headers or {}, **{"User-Agent": USER_AGENT})
            if authorization and same_origin(first, url) and may_carry_token(url):
                own["Authorization"] = authorization
            response = self._sessions().request(
                method,
                url,
                headers=own,
                params=params,
                json=json,
                stream=True,
                timeout=self._timeout,
                allow_redirects=False,
                proxies=_NO_PROXIES if is_loopback(url) else None,
                auth=_as_it_is,
            )
            if not response.is_redirect:
                return response
            response.close()
            url = urljoin(url, response.headers["location"])
            if urlsplit(url).scheme not in ("http", "https"):
                raise requests.exceptions.InvalidSchema("redirect to something else than http")
            params = None
            if response.status_code in (301, 302, 303) and method == "POST":
                method, json = "GET", None
        raise requests.TooManyRedirects(f"more than {_MAX_REDIRECTS}")

    def fetch(
        self, method: str, url: str, *, stop: Callable[[], None] = never, **options: Any
    ) -> Answer:
        """Send one request (see `send`) and read the whole answer, at most `MAX_BODY` bytes.

        Raises:
            requests.RequestException: no answer, or one cut short.
            HubError: the answer is longer.
        """
        with self.send(method, url, **options) as response:
            body = bytearray()
            for chunk in response.iter_content(1 << 16):
                stop()
                body += chunk
                if len(body) > MAX_BODY:
                    raise HubError(
                        f"{without_query(url)} answered with more than {MAX_BODY >> 20} MB."
                    )
            return Answer(
                response.status_code,
                lower_case(response.headers),
                bytes(body),
                without_query(response.url),
            )

    def _sessions(self) -> requests.Session:
        import requests

        with self._lock:
            if self._session is None:
                self._session = requests.Session()
            return self._session


def lower_case(headers: Mapping[str, str]) -> dict[str, str]:
    """Headers with their names in lower case."""
    return {name.lower(): value for name, value in headers.items()}


def _as_it_is(request: Any) -> Any:
    # An `auth` keeps requests from looking into .netrc.
    return request


def _origin(url: str) -> tuple[str, str, int | None]:
    parts = urlsplit(url)
    default = {"http": 80, "https": 443}.get(parts.scheme)
    return parts.scheme, parts.hostname or "", parts.port or default
