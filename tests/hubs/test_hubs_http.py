"""Pace, tries, waiting, redirects and proxies."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from intelligent_generation.core.errors import HubBusyError, HubError, SettingError
from intelligent_generation.core.hubs.answers import retry_after
from intelligent_generation.core.hubs.http import (
    USER_AGENT,
    Answer,
    Effects,
    Failure,
    Http,
    Pace,
    backoff,
    endpoint,
    is_loopback,
    persist,
    same_origin,
    without_query,
)
from intelligent_generation.tests.services.fixtures import FakeTime
from intelligent_generation.tests.services.server import Reply, Request, Service, json_reply

BUSY = Failure(HubBusyError("Busy."), again=True, throttled=True)


class Echo(Service):
    def answer(self, request: Request) -> Reply:
        return json_reply({"path": request.path})


@pytest.fixture
def echo() -> Iterator[Echo]:
    with Echo() as server:
        yield server


@pytest.fixture
def other() -> Iterator[Echo]:
    with Echo() as server:
        yield server


def test_three_requests_at_half_a_request_a_second_take_four_seconds(fake_time: FakeTime) -> None:
    pace, start = Pace(0.5), fake_time.now
    for _ in range(3):
        persist(lambda: 1, pace=pace, effects=fake_time.effects)
    assert fake_time.now - start == pytest.approx(4.0)


def test_the_pace_halves_when_the_hub_complains_and_comes_back_but_not_above() -> None:
    pace = Pace(2.0)
    pace.slow_down(0.0, 0.0)
    assert pace.interval == 1.0
    for _ in range(20):
        pace.slow_down(0.0, 0.0)
    assert pace.interval == 30.0
    for _ in range(200):
        pace.speed_up()
    assert pace.interval == 0.5


def test_all_threads_wait_when_one_was_told_to(fake_time: FakeTime) -> None:
    pace = Pace(1.0)
    pace.slow_down(100.0, 42.0)
    assert pace.reserve(100.0) == pytest.approx(42.0)


def test_what_the_hub_asks_for_is_waited(fake_time: FakeTime) -> None:
    answers = iter([BUSY._replace(wait=17.0), "done"])
    start = fake_time.now
    done = persist(lambda: next(answers), pace=Pace(1000), effects=fake_time.effects)
    assert (done, fake_time.now - start) == ("done", pytest.approx(17.0))


def test_tries_are_bounded_and_the_last_error_says_so(fake_time: FakeTime) -> None:
    tried: list[int] = []

    def attempt() -> Failure:
        tried.append(1)
        return Failure(HubBusyError("Trouble."), again=True)

    start = fake_time.now
    with pytest.raises(HubBusyError, match=r"Trouble\. It was tried 5 times"):
        persist(attempt, pace=Pace(1000), effects=fake_time.effects)
    assert len(tried) == 5
    assert fake_time.now - start == pytest.approx(1 + 2 + 4 + 8, abs=0.1)


def test_what_is_hopeless_is_not_tried_again(fake_time: FakeTime) -> None:
    tried: list[int] = []

    def attempt() -> Failure:
        tried.append(1)
        return Failure(HubError("No."))

    with pytest.raises(HubError, match="No"):
        persist(attempt, pace=Pace(1000), effects=fake_time.effects)
    assert len(tried) == 1


def test_a_wait_of_an_hour_is_an_error_not_a_wait(fake_time: FakeTime) -> None:
    start = fake_time.now
    with pytest.raises(HubBusyError, match="60 minutes"):
        persist(lambda: BUSY._replace(wait=3600.0), pace=Pace(1000), effects=fake_time.effects)
    assert fake_time.now == start


def test_waiting_can_be_stopped(fake_time: FakeTime) -> None:
    class Stopped(Exception):  # noqa: N818
        pass

    start = fake_time.now

    def stop() -> None:
        if fake_time.now > start + 3:
            raise Stopped

    effects = fake_time.effects._replace(stop=stop)
    with pytest.raises(Stopped):
        persist(lambda: BUSY._replace(wait=100.0), pace=Pace(1000), effects=effects)
    assert fake_time.now - start < 4


@pytest.mark.parametrize(("number", "least", "most"), [(1, 0.5, 1), (3, 2, 4), (9, 15, 30)])
def test_backoff_doubles_with_jitter_up_to_thirty(number: int, least: float, most: float) -> None:
    assert backoff(number, 0.0) == least
    assert backoff(number, 1.0) == most


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "7"}, 7.0),
        ({"ratelimit": '"api";r=0;t=55'}, 55.0),
        ({"ratelimit": '"api";r=10;t=55'}, None),
        (
            {
                "retry-after": "Mon, 02 Jan 2026 03:04:35 GMT",
                "date": "Mon, 02 Jan 2026 03:04:05 GMT",
            },
            30.0,
        ),
        ({"retry-after": "soon"}, None),
        ({}, None),
    ],
)
def test_how_long_the_hub_wants_to_be_left_alone(
    headers: dict[str, str], seconds: float | None
) -> None:
    assert retry_after(Answer(429, headers, b"", "")) == seconds


def test_our_own_name_and_no_browsers() -> None:
    words = ("mozilla", "chrome", "safari", "firefox", "opera", "edge")
    assert not any(word in USER_AGENT.lower() for word in words)


def test_the_token_stays_with_the_first_host(echo: Echo, other: Echo) -> None:
    echo.fail(Reply(307, {"Location": f"{other.url}/far?signature=1"}))
    other.fail(Reply(302, {"Location": f"{echo.url}/back"}))
    answer = Http().fetch("GET", f"{echo.url}/near", authorization="Bearer canary-1")
    assert answer.status == 200
    assert answer.url == f"{echo.url}/back"
    assert other.requests
    assert not any(request.holds("canary-1") for request in other.requests)
    assert echo.requests[0].token == "canary-1"


def test_a_netrc_is_not_used(echo: Echo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login me password canary-2\n")
    monkeypatch.setenv("NETRC", str(netrc))
    Http().fetch("GET", f"{echo.url}/a", authorization="Bearer mine")
    Http().fetch("GET", f"{echo.url}/b")
    assert [r.headers.get("authorization") for r in echo.requests] == ["Bearer mine", None]


def test_loopback_is_never_asked_by_proxy(echo: Echo, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    echo.fail(Reply(302, {"Location": f"{echo.url}/moved"}))
    assert Http().fetch("GET", f"{echo.url}/x").status == 200


def test_a_proxy_of_the_environment_is_asked_for_others(
    echo: Echo, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", echo.url)
    Http().fetch("GET", "http://models.example/a?b=1", authorization="Bearer canary-3")
    assert echo.requests[0].target == "http://models.example/a?b=1"
    # Not encrypted, not this machine: no token.
    assert not echo.requests[0].holds("canary-3")


def test_endless_redirects_end(echo: Echo) -> None:
    import requests

    echo.fail(*[Reply(302, {"Location": "/again"})] * 20)
    with pytest.raises(requests.TooManyRedirects):
        Http().fetch("GET", f"{echo.url}/x")
    assert len(echo.requests) == 6


def test_reading_can_be_stopped(echo: Echo) -> None:
    def stop() -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        Http().fetch("GET", f"{echo.url}/x", stop=stop)


@pytest.mark.parametrize(
    ("value", "clean"),
    [
        ("https://civitai.red/", "https://civitai.red"),
        ("https://civitai.com/api/v1", "https://civitai.com"),
        (" http://localhost:8000 ", "http://localhost:8000"),
    ],
)
def test_endpoints_are_cleaned(value: str, clean: str) -> None:
    assert endpoint(value, "X") == clean


@pytest.mark.parametrize("value", ["", "civitai.com", "ftp://x", "https://me:secret@x.example"])
def test_what_is_no_endpoint_is_refused_without_repeating_a_password(value: str) -> None:
    with pytest.raises(SettingError, match="CIVITAI_ENDPOINT") as caught:
        endpoint(value, "CIVITAI_ENDPOINT")
    assert "secret" not in str(caught.value)


def test_origins_and_loopback() -> None:
    assert same_origin("https://a.example/x", "https://a.example:443/y")
    assert not same_origin("https://a.example", "http://a.example")
    assert not same_origin("http://a.example:1", "http://a.example:2")
    assert is_loopback("http://127.8.9.1:1/")
    assert is_loopback("http://[::1]/")
    assert is_loopback("http://localhost/")
    assert not is_loopback("http://127.0.0.1.example/")
    assert without_query("https://u:p@a.example/b?token=1#c") == "https://a.example/b"


def test_zero_requests_a_second_is_refused() -> None:
    with pytest.raises(SettingError):
        Pace(0)


def test_the_real_effects_are_real() -> None:
    effects = Effects()
    before = effects.clock()
    effects.sleep(0.0)
    assert effects.clock() >= before
    assert 0 <= effects.random() < 1
