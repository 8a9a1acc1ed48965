"""The small commands around `sagesched serve`. Each takes its arguments and returns the exit code.

A command imports what it needs when it runs, so that all of them start fast. SettingsError becomes
one line and exit code 2 (command_line.py).
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import signal
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from gateway.errors import SettingsError

if TYPE_CHECKING:
    import httpx

    from gateway.settings.schema import Demo

ADMIN_ENV = "SAGESCHED_ADMIN_TOKEN"


def new_key(args: argparse.Namespace) -> int:
    """Print a new tenant key and its hash."""
    from gateway.api.auth import digest

    key = "sage-" + secrets.token_urlsafe(32)
    print(f"key (give it to the client, it is not stored): {key}")
    print(f'hash (for keys = [...] in gateway.toml):        "{digest(key)}"')
    return 0


def demo_provider(args: argparse.Namespace) -> int:
    """Run the demo provider alone, until SIGTERM or SIGINT."""
    from gateway.demo import provider as demo

    names = [name for name in args.keys.split(",") if name]
    keys = [os.environ[name] for name in names if os.environ.get(name)]
    settings = _demo_settings(args)
    if args.end_with_stdin:
        threading.Thread(target=_end_with_stdin, daemon=True).start()
    demo.run(settings, keys or None)
    return 0


def _demo_settings(args: argparse.Namespace) -> Demo:
    """`[demo]` of the settings file, the defaults where there is none, with `--set` over it."""
    from gateway.settings import load
    from gateway.settings.schema import Demo

    config = Path(args.config)
    fields = msgspec.to_builtins(load.load(config).demo if config.exists() else Demo())
    for text in args.set:
        key, _, value = text.partition("=")
        fields[key] = value
    try:
        return msgspec.convert(fields, Demo, strict=False)  # not strict: values come as text
    except msgspec.ValidationError as error:
        raise SettingsError(f"--set: {error}") from None


def _end_with_stdin() -> None:
    """End this process when its standard input closes."""
    while os.read(0, 4096):  # sys.stdin has a lock, which would block the interpreter's exit
        pass
    while True:  # the server may not have its signal handlers yet
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.2)


def _url(args: argparse.Namespace) -> str:
    url: str = args.url or f"http://127.0.0.1:{os.environ.get('PORT') or 3000}"
    return url.rstrip("/").removesuffix("/v1")


def _reach(
    args: argparse.Namespace, method: str, path: str, timeout_s: float = 600, **more: Any
) -> httpx.Response:
    """The answer to one request. Raises SettingsError where no gateway answers."""
    import httpx

    try:
        return httpx.request(method, _url(args) + path, timeout=timeout_s, trust_env=False, **more)
    except (httpx.TransportError, httpx.InvalidURL) as error:
        raise SettingsError(f"no gateway answers at {_url(args)}: {error}") from None


def get(args: argparse.Namespace) -> int:
    """Print the answer of one route; 1 where it is no success."""
    token = args.key or os.environ.get(ADMIN_ENV, "")
    headers = {"authorization": f"Bearer {token}"} if token else {}
    response = _reach(args, "GET", "/" + args.path.lstrip("/"), headers=headers)
    _show(response)
    return 0 if response.is_success else 1


def predict(args: argparse.Namespace) -> int:
    """Print the forecast of a prompt; 1 where there is none."""
    headers = {"authorization": f"Bearer {args.key}"}
    response = _reach(args, "POST", "/predict", json={"prompt": args.prompt}, headers=headers)
    _show(response)
    return 0 if response.is_success else 1


def healthcheck(args: argparse.Namespace) -> int:
    """Ask /health on the port of the settings; 0 where the gateway is ready.

    It is a container's HEALTHCHECK, so it imports no HTTP client.
    """
    import urllib.error
    import urllib.request

    url = args.url
    if url is None:
        from gateway.settings import load

        server = load.load(Path(args.config)).server
        host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(server.host, server.host)
        url = f"http://{host}:{server.port}"
    try:
        # A proxy of the environment is for the providers, not for this machine.
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with direct.open(url + "/health", timeout=3) as response:
            return 0 if response.status == 200 else 1
    except (OSError, ValueError) as error:
        print(f"sagesched: not ready: {error}", file=sys.stderr)
        return 1


def ask(args: argparse.Namespace) -> int:
    """Print the answer to one chat request; 1 where it failed."""
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
    import httpx

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
    """Fit the length models to the history; 0 where better ones are in force, 3 where none is."""
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


def predictor(args: argparse.Namespace) -> int:
    """Run the predictor's child process."""
    from gateway.predict.process import worker
    from gateway.store.history_writer import HistoryWriter

    return worker.run(lambda path: HistoryWriter(Path(path)))
