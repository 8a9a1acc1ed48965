"""Command line of the offline tools: `python -m gateway.workbench simulate …`.

`sagesched simulate …` leads here, too. A tool is a module with `add_arguments(parser)` and
`run(args)`, the exit code; it is imported only when its name is the first argument.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from gateway.command_line import exit_code, prepare_environment

TOOLS = {
    "bench": ("bench.http_bench", "the gateway against no gateway, over real HTTP"),
    "bench-provider": ("bench.http_provider", ""),
    "evaluate": ("evaluate.evaluator", "judge the predictor on rows it never saw"),
    "history": ("history", "work on the stored history"),
    "load": ("endpoint_load", "open-loop load on any OpenAI-compatible endpoint"),
    "models": ("encoders.export", "work on the models"),
    "report": ("report.observed_report", "what scheduling would have gained on observed traffic"),
    "simulate": (
        "simulate.simulator",
        "play the scheduler against providers on a virtual clock",
    ),
}
"""Name → (module, help). A tool without help is started by another one and not listed."""

prepare_environment()


def run(arguments: Sequence[str], program: str) -> int:
    """Run the tool that the first argument names. Raises SettingsError."""
    parser = argparse.ArgumentParser(prog=program, description="The gateway's offline tools.")
    tools = parser.add_subparsers(required=True, metavar="TOOL")
    for name, (module, text) in TOOLS.items():
        listed: dict[str, Any] = {"help": text} if text else {}
        sub = tools.add_parser(name, description=text, **listed)
        if arguments[:1] and arguments[0] == name:
            tool = import_module(f"gateway.workbench.{module}")
            tool.add_arguments(sub)
            sub.set_defaults(run=tool.run)
    args = parser.parse_args(arguments)
    code: int = args.run(args)
    return code


def main() -> int:
    """Exit code of `python -m gateway.workbench`."""
    return exit_code(lambda: run(sys.argv[1:], "python -m gateway.workbench"))


if __name__ == "__main__":
    sys.exit(main())
