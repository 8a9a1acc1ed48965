"""The command line: `sagesched serve`, and what is around it.

Sets the numeric libraries' threads to one before anything imports them: several OpenMP and
BLAS copies in one process fight over two cores, and every vector here is small.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from gateway import __version__
from gateway.errors import SettingsError

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# onnxruntime 1.32 tells its maker of every session unless told not to.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"


def main(argv: Sequence[str] | None = None) -> int:
    """Parse and run one command; the exit code."""
    args = _parser().parse_args(argv)
    try:
        code: int = args.run(args)
        return code
    except SettingsError as error:
        print(f"sagesched: {error.message}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `… | head`: the reader has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sagesched", description="A gateway in front of LLM APIs that predicts and schedules."
    )
    parser.add_argument("--version", action="version", version=f"sagesched {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: str, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(run=lambda args: _run(run, args))
        return sub

    def config(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("--config", default="gateway.toml", metavar="FILE")

    sub = command("serve", "serve", "run the gateway")
    config(sub)
    sub = command("check", "check", "validate the settings without starting")
    config(sub)
    sub = command("demo-provider", "demo_provider", "run the built-in demo provider alone")
    _demo_options(sub)
    sub = command("key", "new_key", "make a tenant key and the hash for gateway.toml")
    sub = command("ask", "ask", "send one chat request to a running gateway")
    sub.add_argument("prompt")
    sub.add_argument("--url", default=None, help="default: http://127.0.0.1:$PORT")
    sub.add_argument("--model", default="gpt-5.4-mini")
    sub.add_argument("--stream", action="store_true")
    sub.add_argument("--key", default="anything")
    sub = command("get", "get", "read one route of a running gateway")
    sub.add_argument("path", help="such as /metrics, /health, /stats")
    sub.add_argument("--key", default="", help="default: $SAGESCHED_ADMIN_TOKEN")
    sub.add_argument("--url", default=None, help="default: http://127.0.0.1:$PORT")
    sub = command("predict", "predict", "ask a running gateway for a forecast")
    sub.add_argument("prompt")
    sub.add_argument("--url", default=None, help="default: http://127.0.0.1:$PORT")
    sub.add_argument("--key", default="anything")
    sub = command("healthcheck", "healthcheck", "exit 0 when a running gateway is ready")
    sub.add_argument("--url", default=None, help="default: the port of --config")
    config(sub)

    _evaluate_options(command("evaluate", "evaluate", "judge the predictor on rows it never saw"))

    _simulate_options(
        command("simulate", "simulate", "play the scheduler against providers on a virtual clock")
    )

    from gateway.workbench import history

    sub = commands.add_parser("history", help="work on the stored history")
    sub.set_defaults(run=history.run)
    history.add_arguments(sub)
    sub = command(
        "refit", "refit", "fit the length models to the stored history, as the gateway does"
    )
    config(sub)
    _bench_options(command("bench", "bench", "the gateway against no gateway, over real HTTP"))
    _load_options(command("load", "load", "open-loop load on any OpenAI-compatible endpoint"))
    sub = command("report", "report", "what scheduling would have gained on observed traffic")
    config(sub)
    sub.add_argument("--history", metavar="FILE", help="the store; default: that of --config")
    sub.add_argument("--rows", type=int, default=100_000, help="the newest so many")
    sub.add_argument("--out", metavar="DIR", help="report.json and report.md, too")
    models = commands.add_parser("models", help="work on the models")
    models_commands = models.add_subparsers(required=True, metavar="COMMAND")
    text = "make an encoder of a local BERT-type folder, to choose by EMBEDDING_MODEL_NAME"
    sub = models_commands.add_parser("export", help=text, description=text)
    sub.set_defaults(run=lambda args: _run("models_export", args))
    sub.add_argument("folder", help="with config.json, model.safetensors, tokenizer.json")
    config(sub)
    sub.add_argument("--out", default=None, metavar="DIR", help="default: <models_path>/encoders")
    sub.add_argument("--name", default="", help="default: the folder's")
    sub.add_argument("--fp32", action="store_true", help="keep the weights as they are: no int8")
    # The program starts these by itself: not listed.
    commands.add_parser("bench-provider").set_defaults(run=lambda a: _run("bench_provider", a))
    commands.add_parser("predictor").set_defaults(run=lambda args: _run("predictor", args))
    return parser


def _evaluate_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--config", default="gateway.toml", metavar="FILE")
    sub.add_argument("--data", metavar="FILE", help="conversations as JSON lines, .gz or not")
    sub.add_argument(
        "--history",
        nargs="?",
        const="",
        metavar="FILE",
        help="a gateway's store; without FILE the one of --config",
    )
    sub.add_argument("--out", required=True, metavar="DIR")
    sub.add_argument(
        "--strict-replay", action="store_true", help="learn each row right after its forecast"
    )
    sub.add_argument("--in-flight", type=int, default=64, help="else learned so many rows later")
    sub.add_argument("--limit", type=int, default=None, metavar="ROWS")
    sub.add_argument("--side", choices=["auto", "held", "unfitted"], default="auto")
    sub.add_argument("--variants", default="", metavar="A,B", help="default: all")
    sub.add_argument("--leave-out", action="append", default=[], metavar="SOURCE")
    sub.add_argument("--apart-rows", type=int, default=1000)
    sub.add_argument("--no-scenarios", action="store_true")
    sub.add_argument("--workers", type=int, default=2)


def _simulate_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--config", default="gateway.toml", metavar="FILE")
    sub.add_argument("--out", required=True, metavar="DIR")
    sub.add_argument("--data", metavar="FILE", help="conversations as JSON lines, .gz or not")
    sub.add_argument(
        "--history",
        nargs="?",
        const="",
        metavar="FILE",
        help="a gateway's store; without FILE the one of --config",
    )
    sub.add_argument("--forecasts", metavar="FILE", help="default: DIR/forecasts.npz")
    sub.add_argument(
        "--learned",
        type=int,
        default=0,
        metavar="ROWS",
        help="before each forecast; default: all earlier ones",
    )
    sub.add_argument("--tau", default="", metavar="T,T", help="forecasts of such a Kendall τ")
    sub.add_argument(
        "--scenarios",
        default="burst",
        metavar="A,B",
        help="burst, steady, drop, drift, limits, flood, isolation",
    )
    sub.add_argument(
        "--shapes",
        default="knee,power,quadratic,linear",
        metavar="A,B",
        help="linear, knee, power, quadratic, usl",
    )
    sub.add_argument(
        "--rho", default="", metavar="R,R", help="loads: × best throughput, or medium, high"
    )
    sub.add_argument("--requests", type=int, default=0, help="default: the scenario's")
    sub.add_argument("--seeds", type=int, default=20)
    sub.add_argument("--first-seed", type=int, default=0)
    sub.add_argument(
        "--mix", default="published", help="as-is, balanced, heavy, published: shares of sizes"
    )
    sub.add_argument(
        "--arrivals", default="poisson", metavar="KIND", help="poisson, burst or a .csv[.gz]"
    )
    sub.add_argument("--speed", type=float, default=0.0, help="of a file; default: to the load")
    sub.add_argument("--policies", default="", metavar="A,B", help="default: all")
    sub.add_argument("--warm-up", type=int, default=300, metavar="REQUESTS")
    sub.add_argument("--provider", action="append", default=[], metavar="KEY=NUMBER")
    sub.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE")
    sub.add_argument("--jobs", type=int, default=0, help="processes; default: cores")


def _bench_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--data", metavar="FILE", help="conversations; default: the demo's own")
    sub.add_argument("--out", required=True, metavar="DIR")
    sub.add_argument("--shapes", default="knee,power,linear", metavar="A,B")
    sub.add_argument("--seeds", type=int, default=5)
    sub.add_argument("--first-seed", type=int, default=0)
    sub.add_argument("--total-requests", type=int, default=200)
    sub.add_argument("--seed-count", type=int, default=300, help="rows taught before")
    sub.add_argument("--warm-up", type=int, default=200, metavar="REQUESTS")
    sub.add_argument("--cold-seeds", type=int, default=2, help="seeds measured without warm-up too")
    sub.add_argument("--rho", type=float, default=2.0, help="arrivals per capacity")
    sub.add_argument("--mix", default="published")
    sub.add_argument("--time-scale", type=float, default=5.0)
    sub.add_argument("--stream-share", type=float, default=0.5)
    sub.add_argument("--parallel", type=int, default=1, metavar="N", help="seeds at a time")
    sub.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE")


def _load_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("url", help="the base URL, such as http://127.0.0.1:3000/v1")
    sub.add_argument("--model", default="", help="default: each row's own")
    sub.add_argument("--rate", type=float, default=5.0, help="requests a second, Poisson")
    sub.add_argument("--requests", type=int, default=200)
    sub.add_argument("--data", metavar="FILE", help="conversations; default: the demo's own")
    sub.add_argument("--arrivals", metavar="CSV", help="a trace's rhythm instead of --rate")
    sub.add_argument("--speed", type=float, default=1.0, help="of the trace")
    sub.add_argument("--mix", default="as-is", help="as-is, balanced, heavy, published")
    sub.add_argument("--stream-share", type=float, default=1.0)
    sub.add_argument("--seed", type=int, default=0)
    sub.add_argument("--timeout", type=float, default=600.0, metavar="SECONDS")
    sub.add_argument("--out", metavar="FILE", help="all figures as JSON")


def _demo_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--host", default="127.0.0.1", choices=["127.0.0.1", "::1", "localhost"])
    sub.add_argument("--port", type=int, default=4010)
    sub.add_argument("--base-latency", type=float, default=0.15, metavar="SECONDS")
    sub.add_argument("--token-latency", type=float, default=0.01, metavar="SECONDS")
    sub.add_argument("--congestion-knee", type=int, default=16, metavar="STREAMS")
    sub.add_argument("--congestion-exponent", type=float, default=1.0)
    sub.add_argument("--noise", type=float, default=0.1, metavar="SIGMA")
    sub.add_argument("--rpm", type=int, default=0, help="requests a minute and key, 0: no limit")
    sub.add_argument("--max-concurrency", type=int, default=0, help="a key, 0: no limit")
    sub.add_argument("--error-rate", type=float, default=0.0)
    sub.add_argument("--seed", type=int, default=0)
    sub.add_argument(
        "--keys",
        default="",
        metavar="ENV,ENV",
        help="names of environment variables that hold the accepted keys; default: any key",
    )
    sub.add_argument("--end-with-stdin", action="store_true", help="end when standard input closes")


def _run(name: str, args: argparse.Namespace) -> int:
    # Imported late: `--help` and `key` need none of the libraries.
    if name in ("serve", "check"):
        from gateway import serve as module
    else:
        from gateway import commands as module  # type: ignore[no-redef]
    result: int = getattr(module, name)(args)
    return result


if __name__ == "__main__":
    sys.exit(main())
