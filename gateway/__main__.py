"""The command line: `sagesched serve`, the small commands around it, and the offline tools.

A command's module is imported when that command runs. The offline tools lie in
`gateway/workbench`, with a command line of their own; this one passes their names on to it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib.util import find_spec

from gateway import __version__
from gateway.command_line import exit_code, prepare_environment
from gateway.errors import SettingsError

TOOLS = ("bench", "bench-provider", "evaluate", "history", "load", "models", "report", "simulate")
"""Names that gateway/workbench/__main__.py has tools for."""

prepare_environment()


def main(argv: Sequence[str] | None = None) -> int:
    """Parse and run one command; the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] and arguments[0] in TOOLS:
        return exit_code(lambda: _run_tool(arguments))
    args = _parser().parse_args(arguments)
    return exit_code(lambda: _run(args))


def _run_tool(arguments: Sequence[str]) -> int:
    if not _has_tools():
        raise SettingsError(
            f"{arguments[0]!r} is an offline tool, and this installation has none of them"
            " (gateway/workbench)"
        )
    from gateway.workbench import __main__ as workbench

    return workbench.run(arguments, "sagesched")


def _has_tools() -> bool:
    """True where the workbench is installed; it is not imported."""
    spec = find_spec("gateway.workbench")
    return spec is not None and spec.origin is not None  # without origin: an empty folder is left


def _run(args: argparse.Namespace) -> int:
    """Run a serving command, whose function has its name."""
    if args.command in ("serve", "check"):
        from gateway import serve as module
    else:
        from gateway import commands as module  # type: ignore[no-redef]
    code: int = getattr(module, args.function)(args)
    return code


def _parser() -> argparse.ArgumentParser:
    tools = ", ".join(name for name in TOOLS if name != "bench-provider")
    parser = argparse.ArgumentParser(
        prog="sagesched",
        description="A gateway in front of LLM APIs that predicts and schedules.",
        epilog=f"Offline tools, each with a --help of its own: {tools}." if _has_tools() else None,
    )
    parser.add_argument("--version", action="version", version=f"sagesched {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")

    def command(name: str, text: str, function: str = "") -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(function=function or name.replace("-", "_"))
        return sub

    _config_option(command("serve", "run the gateway"))
    _config_option(command("check", "validate the settings without starting"))
    _demo_options(command("demo-provider", "run the built-in demo provider alone"))
    command("key", "make a tenant key and the hash for gateway.toml", "new_key")
    _ask_options(command("ask", "send one chat request to a running gateway"))
    sub = command("get", "read one route of a running gateway")
    sub.add_argument("path", help="such as /metrics, /health, /stats")
    sub.add_argument("--key", default="", help="default: $SAGESCHED_ADMIN_TOKEN")
    sub.add_argument("--url", default=None, help="default: http://127.0.0.1:$PORT")
    sub = command("predict", "ask a running gateway for a forecast")
    sub.add_argument("prompt")
    sub.add_argument("--url", default=None, help="default: http://127.0.0.1:$PORT")
    sub.add_argument("--key", default="anything")
    sub = command("healthcheck", "exit 0 when a running gateway is ready")
    sub.add_argument("--url", default=None, help="default: the port of --config")
    _config_option(sub)
    _config_option(
        command("refit", "fit the length models to the stored history, as the gateway does")
    )
    # The gateway starts this one by itself: not listed.
    commands.add_parser("predictor").set_defaults(function="predictor")
    return parser


def _config_option(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--config", default="gateway.toml", metavar="FILE")


def _ask_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("prompt")
    sub.add_argument("--url", default=None, help="default: http://127.0.0.1:$PORT")
    sub.add_argument("--model", default="gpt-5.4-mini")
    sub.add_argument("--stream", action="store_true")
    sub.add_argument("--key", default="anything")


def _demo_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--config", default="gateway.toml", metavar="FILE", help="the table [demo] is read"
    )
    sub.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a key of [demo], such as rpm=60; may be repeated",
    )
    sub.add_argument(
        "--keys",
        default="",
        metavar="ENV,ENV",
        help="names of environment variables that hold the accepted keys; default: any key",
    )
    sub.add_argument("--end-with-stdin", action="store_true", help="end when standard input closes")


if __name__ == "__main__":
    sys.exit(main())
