"""Fixtures for whoever imports them into a conftest: the stand-ins, and a clock of one's own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from intelligent_generation.core.hubs import Effects
from intelligent_generation.tests.services.civitai import CivitaiServer
from intelligent_generation.tests.services.huggingface import HuggingFaceServer


class FakeTime:
    """A clock that only sleeping moves."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.slept: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.slept.append(seconds)

    @property
    def effects(self) -> Effects:
        """No chance in it: waits are the longest that chance allows."""
        return Effects(clock=lambda: self.now, sleep=self.sleep, random=lambda: 1.0)


@pytest.fixture
def fake_time() -> FakeTime:
    return FakeTime()


@pytest.fixture
def civitai_server() -> Iterator[CivitaiServer]:
    with CivitaiServer() as server:
        yield server


@pytest.fixture
def huggingface_server() -> Iterator[HuggingFaceServer]:
    with HuggingFaceServer() as server:
        yield server
