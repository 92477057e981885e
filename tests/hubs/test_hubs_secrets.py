"""A canary token through everything both clients do: where it may be, and nowhere else."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from intelligent_generation.core.errors import HubError
from intelligent_generation.core.hubs import (
    Civitai,
    Credentials,
    HuggingFace,
    Pace,
    SearchQuery,
)
from intelligent_generation.core.hubs.http import Http
from intelligent_generation.tests.services.civitai import (
    CivitaiServer,
    make_file,
    make_model,
    make_version,
)
from intelligent_generation.tests.services.fixtures import FakeTime
from intelligent_generation.tests.services.huggingface import HuggingFaceServer, Repository
from intelligent_generation.tests.services.server import DROP, Reply, Service, json_reply

CANARY = "canary-4f1d2c"


class Storage(Service):
    """Answers 400 to a forwarded token, as presigned addresses do."""

    def answer(self, request) -> Reply:
        return Reply(400 if "authorization" in request.headers else 200, {}, b"bytes")


def test_a_token_is_in_the_hubs_own_header_and_nowhere_else(
    civitai_server: CivitaiServer,
    huggingface_server: HuggingFaceServer,
    fake_time: FakeTime,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    credentials = Credentials(tmp_path, {"HF_TOKEN": CANARY})
    credentials.set("civitai", CANARY)
    options = {"family_of": str, "pace": Pace(1000), "effects": fake_time.effects}
    civitai_server.tokens = huggingface_server.tokens = {CANARY}
    file = make_file(1, "a.safetensors", b"\x02\0\0\0\0\0\0\0{}data")
    civitai_server.models = [make_model(1, "A", [make_version(10, [file])])]
    huggingface_server.repositories = [Repository("a/b", {"a.safetensors": b"1"})]
    shown: list[object] = [credentials, credentials.status()]
    with Storage() as storage:
        civitai_server.locate = lambda file: f"{storage.url}/{file['name']}?signature=x"
        site = Civitai(token=lambda: credentials.token("civitai"),
                       address=civitai_server.url, **options)  # fmt: skip
        hub = HuggingFace(token=lambda: credentials.token("huggingface"),
                          address=huggingface_server.url, **options)  # fmt: skip
        for server in (civitai_server, huggingface_server):
            server.fail(DROP, json_reply({"error": "slow"}, 429, Retry_After="1"))
        version = site.version(10)
        shown += [site, hub, site.search(SearchQuery()), version, hub.search(SearchQuery())]
        shown += [site.by_hashes([file["hashes"]["SHA256"]]), site.settings(version)]
        shown += [hub.repository("a/b")]
        authorization = credentials.authorization("civitai")
        answer = Http().fetch("GET", site.file(version).url, authorization=authorization)
        assert answer.status == 200, "the second host saw no token"
        shown.append(answer)
        for look_up in (lambda: site.version(9), lambda: hub.repository("a/none")):
            with pytest.raises(HubError) as caught:
                look_up()
            shown.append((str(caught.value), repr(caught.value)))
        assert storage.requests
        assert not any(request.holds(CANARY) for request in storage.requests)
    for request in (*civitai_server.requests, *huggingface_server.requests):
        assert request.token == CANARY
        assert CANARY not in request.target
    assert CANARY not in repr(shown)
    assert CANARY not in caplog.text
