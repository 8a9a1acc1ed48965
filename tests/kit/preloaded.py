"""Imported by the fork server alone (forked.py): all that a start of the gateway imports.

The objects made so far are kept from the collector, which every start runs once.
"""

from __future__ import annotations

import gc
from contextlib import suppress
from importlib import import_module

from gateway.command_line import prepare_environment

prepare_environment()  # before numpy is imported
for name in (
    "gateway.serve",
    "uvloop",
    "uvicorn.lifespan.off",
    "litestar.middleware._internal.exceptions",
    "litestar.plugins.attrs",  # litestar imports these two where their libraries are installed
    "litestar.plugins.pydantic",
    "pydantic.v1",
):
    with suppress(ImportError):
        import_module(name)
gc.collect()
gc.freeze()
