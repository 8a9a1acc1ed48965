"""Fixtures for all tests: a scripted provider, and gateways that are ended along."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.kit.gateway import GatewayProcess, account
from tests.kit.provider import ScriptedProvider

# No test speaks TLS, and httpx reads the certificates of the machine (20 ms) for each client.
os.environ.pop("SSL_CERT_FILE", None)
os.environ["SSL_CERT_DIR"] = os.devnull


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """Async tests run on asyncio alone: the product does, too."""
    return "asyncio"


@pytest.fixture
def provider() -> Iterator[ScriptedProvider]:
    """A scripted provider on a thread of its own, for sync and async tests."""
    with ScriptedProvider() as running:
        yield running


@pytest.fixture
def start_gateway(tmp_path: Path) -> Iterator[Callable[..., GatewayProcess]]:
    """Starts gateways: `start_gateway(provider, schedule={…})` or `accounts=[…]`.

    Providers given by position become the accounts a, b, c …. Those still running at the
    end get SIGTERM, and must exit with 0.
    """
    started: list[GatewayProcess] = []

    def start(*providers: Any, **how: Any) -> GatewayProcess:
        if providers:
            how["accounts"] = [account(p, n) for p, n in zip(providers, "abcdefgh", strict=False)]
        directory = tmp_path / f"gateway-{len(started)}"
        directory.mkdir()
        how.setdefault("forked", True)
        gateway = GatewayProcess(directory, **how)
        started.append(gateway)
        gateway.start()
        return gateway

    yield start
    try:
        for gateway in started:
            gateway.stop()
    finally:
        for gateway in started:
            gateway.kill()
