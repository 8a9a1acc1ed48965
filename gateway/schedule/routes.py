"""The accounts that serve a model, and the models that share a queue.

A pool is a connected component: two models belong together when some chain of accounts links
them, for only then can one be in the other's way. Everything else gets a queue of its own, so a
full model never blocks another at the head.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from gateway.settings.schema import Account


class Route(Struct, frozen=True):
    """The pool and accounts of a model's jobs. A pool is named after its first model in config
    order."""

    pool: str
    accounts: tuple[str, ...]  # in config order
    upstream: dict[str, str]  # account → the model's name there


def routes(accounts: Sequence[Account]) -> dict[str, Route]:
    """The route of each model by the client's name for it, in config order."""
    serving: dict[str, dict[str, str]] = {}
    for account in accounts:
        for model, upstream in account.model_map.items():
            serving.setdefault(model, {})[account.name] = upstream
    pool_of = _components([tuple(account.model_map) for account in accounts])
    return {
        model: Route(pool=pool_of[model], accounts=tuple(names), upstream=names)
        for model, names in serving.items()
    }


class RouteTable:
    """The routes of one settings value, and the home of a job by them."""

    def __init__(self, accounts: Sequence[Account]) -> None:
        self.routes = routes(accounts)
        self.pool_of = {  # account → pool
            name: route.pool for route in self.routes.values() for name in route.accounts
        }
        self.pools = tuple(dict.fromkeys(route.pool for route in self.routes.values()))
        self._order = tuple(account.name for account in accounts)

    def models(self, pool: str) -> tuple[str, ...]:
        return tuple(model for model, route in self.routes.items() if route.pool == pool)

    def accounts(self, pool: str) -> tuple[str, ...]:
        return tuple(name for name in self._order if self.pool_of[name] == pool)

    def home(self, model: str, wanted: tuple[str, ...]) -> tuple[str, tuple[str, ...]] | None:
        """Pool and accounts of a job for `model` that may go to `wanted`; None where no account of
        these is served.

        A job may have been made before a reload: accounts that no longer serve its model are
        dropped, and if none is left the model's own route decides. A job of no configured model
        (a relayed route) stays inside the pool of its first known account.
        """
        route = self.routes.get(model)
        if route is not None:
            if wanted == route.accounts:
                return route.pool, wanted
            left = tuple(name for name in wanted if name in route.accounts)
            return route.pool, left or route.accounts
        served = [name for name in wanted if name in self.pool_of]
        if not served:
            return None
        pool = self.pool_of[served[0]]
        return pool, tuple(name for name in served if self.pool_of[name] == pool)


def _components(groups: Sequence[tuple[str, ...]]) -> dict[str, str]:
    """The first model of each model's component (union-find, the earlier root wins)."""
    parent: dict[str, str] = {}
    order: dict[str, int] = {}

    def root(model: str) -> str:
        while parent[model] != model:
            parent[model] = parent[parent[model]]
            model = parent[model]
        return model

    for group in groups:
        for model in group:
            parent.setdefault(model, model)
            order.setdefault(model, len(order))
        for model in group[1:]:
            first, second = sorted((root(group[0]), root(model)), key=order.__getitem__)
            parent[second] = first
    return {model: root(model) for model in parent}
