from __future__ import annotations

from gateway.schedule.routes import RouteTable, routes
from tests.unit.schedule.build import settings

ACCOUNTS = settings(
    {
        "a": {"models": ["m"]},
        "b": {"models": ["n"]},
        "c": {"models": {"n": "n-2026", "m": "m-2026"}},
        "d": {"models": ["alone"]},
    }
).accounts


def test_routes_join_models_that_share_an_account() -> None:
    """A pool is a connected component, named after its first model."""
    found = routes(ACCOUNTS)
    assert {model: route.pool for model, route in found.items()} == {
        "m": "m",
        "n": "m",
        "alone": "alone",
    }


def test_routes_name_accounts_in_config_order_and_the_model_there() -> None:
    """A route lists the accounts that serve a model, with its name on each."""
    route = routes(ACCOUNTS)["n"]
    assert route.accounts == ("b", "c")
    assert route.upstream == {"b": "n", "c": "n-2026"}


def test_route_table_knows_the_models_and_accounts_of_a_pool() -> None:
    """Models and accounts of a pool come in config order."""
    route_table = RouteTable(ACCOUNTS)
    assert route_table.pools == ("m", "alone")
    assert route_table.models("m") == ("m", "n")
    assert route_table.accounts("m") == ("a", "b", "c")


def test_route_table_home_drops_accounts_that_do_not_serve_the_model() -> None:
    """A job made before a reload, or bound to some accounts, goes to those that serve its model."""
    route_table = RouteTable(ACCOUNTS)
    assert route_table.home("m", ("a", "c")) == ("m", ("a", "c"))
    assert route_table.home("m", ("c", "gone", "b")) == ("m", ("c",))
    assert route_table.home("m", ("gone",)) == ("m", ("a", "c"))


def test_route_table_home_of_no_model_is_its_accounts() -> None:
    """A relayed route names accounts only, and stays in one pool."""
    route_table = RouteTable(ACCOUNTS)
    assert route_table.home("", ("gone", "d", "a")) == ("alone", ("d",))
    assert route_table.home("", ("gone",)) is None


def test_routes_name_a_pool_after_the_first_model_of_the_settings() -> None:
    """The name does not follow the alphabet, whatever account joins the models."""
    accounts = settings(
        {
            "1": {"models": ["z"]},
            "2": {"models": ["y", "x"]},
            "3": {"models": ["b"]},
            "4": {"models": ["a", "b"]},
            "5": {"models": ["x", "z"]},
        }
    ).accounts
    found = {model: route.pool for model, route in routes(accounts).items()}
    assert found == {"z": "z", "y": "z", "x": "z", "b": "b", "a": "b"}
    route_table = RouteTable(accounts)
    assert route_table.models("z") == ("z", "y", "x")
    assert route_table.accounts("z") == ("1", "2", "5")
