"""The small commands. Each imports what it needs when it runs, so that all start fast."""

from __future__ import annotations

import argparse
import json
import os
import re
import secrets
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import msgspec

from gateway.errors import SettingsError

ADMIN_ENV = "SAGESCHED_ADMIN_TOKEN"


def new_key(args: argparse.Namespace) -> int:
    from gateway.api.auth import digest

    key = "sage-" + secrets.token_urlsafe(32)
    print(f"key (give it to the client, it is not stored): {key}")
    print(f'hash (for keys = [...] in gateway.toml):        "{digest(key)}"')
    return 0


def demo_provider(args: argparse.Namespace) -> int:
    from gateway.demo import provider as demo
    from gateway.settings.schema import Demo

    settings = msgspec.convert(
        {
            "enabled": True,
            "host": args.host,
            "port": args.port,
            "base_latency_s": args.base_latency,
            "token_latency_s": args.token_latency,
            "congestion_knee": args.congestion_knee,
            "congestion_exponent": args.congestion_exponent,
            "noise": args.noise,
            "rpm": args.rpm,
            "max_concurrency": args.max_concurrency,
            "error_rate": args.error_rate,
            "seed": args.seed,
        },
        Demo,
    )
    names = [name for name in args.keys.split(",") if name]
    keys = [os.environ[name] for name in names if os.environ.get(name)]
    if args.end_with_stdin:
        threading.Thread(target=_end_with_stdin, daemon=True).start()
    demo.run(settings, keys or None)
    return 0


def _end_with_stdin() -> None:
    while os.read(0, 4096):  # not sys.stdin: its lock would be in the interpreter's way at exit
        pass
    while True:  # the server's handlers may not stand yet
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.2)


def _url(args: argparse.Namespace) -> str:
    url: str = args.url or f"http://127.0.0.1:{os.environ.get('PORT') or 3000}"
    return url.rstrip("/").removesuffix("/v1")


def _reach(
    args: argparse.Namespace, method: str, path: str, timeout_s: float = 600, **more: Any
) -> httpx.Response:
    try:
        return httpx.request(method, _url(args) + path, timeout=timeout_s, trust_env=False, **more)
    except (httpx.TransportError, httpx.InvalidURL) as error:
        raise SettingsError(f"no gateway answers at {_url(args)}: {error}") from None


def get(args: argparse.Namespace) -> int:
    token = args.key or os.environ.get(ADMIN_ENV, "")
    headers = {"authorization": f"Bearer {token}"} if token else {}
    response = _reach(args, "GET", "/" + args.path.lstrip("/"), headers=headers)
    _show(response)
    return 0 if response.is_success else 1


def predict(args: argparse.Namespace) -> int:
    headers = {"authorization": f"Bearer {args.key}"}
    response = _reach(args, "POST", "/predict", json={"prompt": args.prompt}, headers=headers)
    _show(response)
    return 0 if response.is_success else 1


def healthcheck(args: argparse.Namespace) -> int:
    """For an image's HEALTHCHECK: light, and on the port of the settings."""
    import urllib.error
    import urllib.request

    url = args.url
    if url is None:
        from gateway.settings import load

        server = load.load(Path(args.config)).server
        host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(server.host, server.host)
        url = f"http://{host}:{server.port}"
    try:
        # Straight: a proxy of the environment is for the providers, not for this machine.
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with direct.open(url + "/health", timeout=3) as response:
            return 0 if response.status == 200 else 1
    except (OSError, ValueError) as error:
        print(f"sagesched: not ready: {error}", file=sys.stderr)
        return 1


def ask(args: argparse.Namespace) -> int:
    body = {
        "model": args.model,
        "messages": [{"role": "user", "content": args.prompt}],
        "stream": args.stream,
    }
    headers = {"authorization": f"Bearer {args.key}"}
    if not args.stream:
        response = _reach(args, "POST", "/v1/chat/completions", json=body, headers=headers)
        if response.is_success:
            print(response.json()["choices"][0]["message"]["content"])
        else:
            _show(response)
        _show_headers(response)
        return 0 if response.is_success else 1
    url = _url(args) + "/v1/chat/completions"
    try:
        with httpx.stream(
            "POST", url, json=body, headers=headers, timeout=600, trust_env=False
        ) as response:
            return _show_stream(response)
    except (httpx.TransportError, httpx.InvalidURL) as error:
        raise SettingsError(f"no gateway answers at {_url(args)}: {error}") from None


def _show_stream(response: httpx.Response) -> int:
    if not response.is_success:
        response.read()
        _show(response)
        return 1
    code = 0
    for line in response.iter_lines():
        if line.startswith("data: {"):
            data = json.loads(line[6:])
            if data.get("error"):
                print(f"\n{data['error'].get('message')}", file=sys.stderr)
                code = 1
            for choice in data.get("choices") or ():
                print(choice.get("delta", {}).get("content") or "", end="", flush=True)
    print()
    _show_headers(response)
    return code


def _show(response: httpx.Response) -> None:
    try:
        print(json.dumps(response.json(), indent=2, ensure_ascii=False))
    except ValueError:
        print(response.text)


def _show_headers(response: httpx.Response) -> None:
    for name, value in response.headers.items():
        if name.startswith("x-sagesched"):
            print(f"{name}: {value}", file=sys.stderr)


def refit(args: argparse.Namespace) -> int:
    """Fit the length models to the history; 0: better ones are in force, 3: kept."""
    from gateway.predict.refit import refit as fitting
    from gateway.settings import load
    from gateway.shipped import shipped
    from gateway.store.store import read_history

    settings = load.load(Path(args.config))
    rows = read_history(Path(settings.store.path), settings.predict.refit_rows)
    return fitting.run(
        rows,
        shipped("models"),
        Path(settings.predict.models_path),
        settings.predict.embedding_model_name,
    )


def models_export(args: argparse.Namespace) -> int:
    """Make an encoder of a local folder, where the gateway of the settings finds it."""
    from gateway.predict.encoders import exported_in
    from gateway.settings import load
    from gateway.settings.schema import Predict
    from gateway.shipped import shipped
    from gateway.workbench.encoders.export import export

    config = Path(args.config)
    settings = load.load(config).predict if config.exists() else Predict()
    home = exported_in(settings.models_path)
    out = Path(args.out) if args.out is not None else home
    made = export(Path(args.folder), out, args.name, shipped("models"), fp32=args.fp32)
    print(
        f"{made.folder}: {made.megabytes} MB, {made.width} numbers a vector; cosine with fp32 at"
        f" least {made.cosine_min}, mean {made.cosine_mean}"
    )
    if out.resolve() != home.resolve():
        print(f"the gateway looks for it as {home / made.name}")
    print(f"to use it: EMBEDDING_MODEL_NAME={made.name}, and a restart")
    return 0


def predictor(args: argparse.Namespace) -> int:
    """The predictor's child process."""
    from gateway.predict.process import worker

    return worker.run()


def evaluate(args: argparse.Namespace) -> int:
    from gateway.settings import load
    from gateway.workbench.evaluate import evaluator as replay

    settings = load.load(Path(args.config)) if Path(args.config).exists() else None
    history = None
    if args.history is not None:
        if not args.history and settings is None:
            raise SettingsError(f"{args.config}: cannot be read, and --history names no file")
        history = Path(args.history or settings.store.path)  # type: ignore[union-attr]
    return replay.evaluate(
        Path(args.data) if args.data else None,
        history,
        Path(args.out),
        args.strict_replay,
        in_flight=args.in_flight,
        limit=args.limit,
        side=args.side,
        variants=tuple(v for v in args.variants.split(",") if v),
        leave_out=tuple(args.leave_out),
        apart_rows=args.apart_rows,
        scenarios=not args.no_scenarios,
        workers=args.workers,
        settings=settings.predict if settings else None,
    )


def simulate(args: argparse.Namespace) -> int:
    from gateway.settings import load
    from gateway.workbench.simulate.simulator import Options
    from gateway.workbench.simulate.simulator import simulate as play

    history = args.history
    if history == "":
        history = load.load(Path(args.config)).store.path
    return play(
        Options(
            out=Path(args.out),
            data=Path(args.data) if args.data else None,
            history=Path(history) if history else None,
            kept=Path(args.forecasts) if args.forecasts else None,
            learned=args.learned,
            taus=[_number(text) for text in _listed(args.tau)],
            scenarios=_listed(args.scenarios),
            shapes=_listed(args.shapes),
            rhos=_listed(args.rho),
            requests=args.requests,
            seeds=args.seeds,
            first_seed=args.first_seed,
            mix=args.mix,
            arrivals=args.arrivals,
            speed=args.speed,
            policies=_listed(args.policies),
            warm_up=args.warm_up,
            provider=args.provider,
            settings=args.set,
            jobs=args.jobs or os.cpu_count() or 1,
            # Of paths the names alone: a report may be shown to others.
            command=" ".join(["sagesched", *(re.sub(r"[^=,]*/", "", arg) for arg in sys.argv[1:])]),
        )
    )


def _listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise SettingsError(f"{text!r} is no number") from None


def bench(args: argparse.Namespace) -> int:
    from gateway.workbench.bench import http_bench as replay

    return replay.bench(
        replay.Options(
            out=Path(args.out),
            data=Path(args.data) if args.data else None,
            shapes=[name for name in args.shapes.split(",") if name],
            seeds=args.seeds,
            first_seed=args.first_seed,
            requests=args.total_requests,
            seed_count=args.seed_count,
            warm_up=args.warm_up,
            cold_seeds=args.cold_seeds,
            rho=args.rho,
            mix=args.mix,
            time_scale=args.time_scale,
            stream_share=args.stream_share,
            settings=args.set,
            parallel=args.parallel,
            # Of paths the names alone: a report may be shown to others.
            command=" ".join(["sagesched", *(re.sub(r"[^=,]*/", "", arg) for arg in sys.argv[1:])]),
        )
    )


def bench_provider(args: argparse.Namespace) -> int:
    """The bench's provider, a process of its own."""
    from gateway.workbench.bench import http_provider as provider

    return provider.run()


def load(args: argparse.Namespace) -> int:
    """Its key comes from the environment: a command line can be read by others."""
    from gateway.workbench import load as replay

    return replay.load(
        replay.Options(
            url=args.url,
            model=args.model,
            rate=args.rate,
            requests=args.requests,
            data=Path(args.data) if args.data else None,
            trace=Path(args.arrivals) if args.arrivals else None,
            speed=args.speed,
            mix=args.mix,
            stream_share=args.stream_share,
            seed=args.seed,
            timeout_s=args.timeout,
            out=Path(args.out) if args.out else None,
        )
    )


def report(args: argparse.Namespace) -> int:
    """A gateway that runs on the same store is not disturbed."""
    from gateway.settings import load
    from gateway.workbench.report import observed_report as replay

    settings = load.load(Path(args.config)) if Path(args.config).exists() else None
    if args.history is None and settings is None:
        raise SettingsError(f"{args.config}: cannot be read, and --history names no file")
    history = Path(args.history or settings.store.path)  # type: ignore[union-attr]
    out = Path(args.out) if args.out else None
    return replay.report(
        replay.Options(history=history, out=out, rows=args.rows, settings=settings)
    )
