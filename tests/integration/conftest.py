"""One gateway for a whole module, where tests do not change it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kit.gateway import GatewayProcess, account, tenant
from tests.kit.provider import ScriptedProvider

OTHER_KEY = "kit-other-key"


class Shared:
    """A gateway with two tenants on one scripted provider."""

    def __init__(self, gateway: GatewayProcess, provider: ScriptedProvider) -> None:
        self.gateway = gateway
        self.provider = provider


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    directory: Path = tmp_path_factory.mktemp("shared")
    with (
        ScriptedProvider() as provider,
        GatewayProcess(
            directory,
            accounts=[account(provider)],
            tenants=[tenant(), tenant("other", OTHER_KEY, models=["kit-model"])],
            predict={"enabled": True},
            server={"max_body_bytes": 200_000, "body_timeout_s": 1.0},
            forked=True,
        ) as gateway,
    ):
        yield Shared(gateway, provider)
