"""Digests of answer constraints: their cost, and the schemas they tell apart.

Every JSON schema of the tools in a conversations file is sent as a constraint of the answer, in
a request of its own. The script prints how many digests the schemas have, how many the same
schema has when it is made anew for each request, and the time that reading one takes: usual
schemas, and schemas made to cost much. Without a file the schemas are made up.

    python -m tests.bench.constraint_digests [conversations.jsonl.gz] [--write F] [--against F]

`--write` stores the digests, `--against` compares them with stored ones.
"""

from __future__ import annotations

import argparse
import gc
import gzip
import json
import random
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from gateway.api.prompt import view_of
from gateway.api.schemas import ChatRequest, decode
from gateway.predict.prompt_view import PromptView

Json = dict[str, Any]
MESSAGES = [{"role": "user", "content": "hi"}]
MEMBERS = ("guided_json", "response_format")
REMADE, VARIANTS, RUNS = 300, 20, 15


def schemas_of(path: Path) -> list[Json]:
    """Every distinct schema of a tool in the file's system prompts."""
    distinct: dict[str, Json] = {}
    with gzip.open(path, "rt") as lines:
        for line in lines:
            for message in json.loads(line)["messages"]:
                content = message["content"]
                if isinstance(content, str) and content.startswith("Tools: "):
                    for schema in _parameters(content.removeprefix("Tools: ")):
                        distinct[json.dumps(schema)] = schema
    return list(distinct.values())


def _parameters(text: str) -> Iterator[Json]:
    try:
        tools, _ = json.JSONDecoder().raw_decode(text)
    except ValueError:  # cut short for size
        return
    for tool in tools if isinstance(tools, list) else [tools]:
        schema = tool.get("function", tool).get("parameters")
        if isinstance(schema, dict):
            yield schema


def made_up(count: int) -> list[Json]:
    """As many schemas of one to eight properties."""
    rng = random.Random(1)
    words = [f"{a}_{b}" for a in ("user", "order", "date", "city") for b in ("id", "name", "at")]
    return [
        {
            "type": "object",
            "properties": {
                name: {"type": rng.choice(("string", "integer", "array", "boolean"))}
                for name in rng.sample(words, rng.randint(1, 8))
            },
        }
        for _ in range(count)
    ]


def body(schema: Any, member: str) -> bytes:
    """A chat request whose answer is held to a schema."""
    format = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    value = format if member == "response_format" else schema
    return json.dumps({"model": "m", "messages": MESSAGES, member: value}).encode()


def view(request: bytes) -> PromptView:
    return view_of("t", decode(request, ChatRequest), 2000)


def remade(schema: Any, rng: random.Random) -> Any:
    """The schema as code would make it for another request: other titles, texts and values."""
    if not isinstance(schema, dict):
        return schema
    text = f"at {rng.randint(0, 10**6)}"
    fresh: Json = {"title": text, "description": text}
    for name, value in schema.items():
        if name == "enum":
            fresh[name] = [f"id-{rng.randint(0, 10**6)}" for _ in range(rng.randint(1, 9))]
        elif name == "properties":
            fresh[name] = {
                k: remade(v, rng) if isinstance(v, dict) else v for k, v in value.items()
            }
        elif name not in fresh and name != "default":
            fresh[name] = remade(value, rng)
    return fresh


def hostile(salt: str) -> dict[str, bytes]:
    """Constraints made to cost much, by what they do; another salt makes others of their kind."""
    deep: Json = {"title": salt}
    for _ in range(800):
        deep = {"items": deep}
    itself: Json = {"$ref": "#/$defs/a"}
    cyclic = {**itself, "$defs": {"a": {"title": salt, "properties": {"b": itself}}}}
    made: dict[str, tuple[Any, str]] = {
        "800 levels": (deep, "guided_json"),
        "64 KB of objects": ({"title": salt, "anyOf": [{}] * 16_000}, "guided_json"),
        "64 KB of properties": (
            {"title": salt, "properties": {f"p{i:05}": {} for i in range(4_300)}},
            "guided_json",
        ),
        "64 KB in one enum": ({"enum": [salt, *map(str, range(8_000))]}, "guided_json"),
        "1 MB": ({"enum": [salt, *["x" * 1000] * 1000]}, "response_format"),
        "a reference to itself": (cyclic, "guided_json"),
        "64 KB of regular expression": (salt + "[0-9]" * 13_000, "guided_regex"),
    }
    return {name: body(value, member) for name, (value, member) in made.items()}


def read_us(requests: list[bytes]) -> list[float]:
    """The time of `view_of` for each request, the decoding of the body not counted."""
    decoded = [decode(request, ChatRequest) for request in requests]
    gc.collect()
    taken = []
    for request in decoded:
        began = time.perf_counter_ns()
        view_of("t", request, 2000)
        taken.append((time.perf_counter_ns() - began) / 1000)
    return taken


def row(name: str, taken: list[float], plain: float) -> str:
    p50, p99 = median(taken), quantiles(taken, n=100)[98]
    return f"| {name} | {p50 - plain:.0f} | {p99 - plain:.0f} |"


def count(schemas: list[Json]) -> dict[str, list[tuple[str, str]]]:
    """Print how many digests the schemas have; every schema's two digests, by member."""
    digests: dict[str, list[tuple[str, str]]] = {}
    print(f"{len(schemas)} distinct schemas\n\n| member | exact digests | outline digests |")
    print("|---|---|---|")
    for member in MEMBERS:
        views = [view(body(schema, member)) for schema in schemas]
        digests[member] = [(one.shape, one.form) for one in views]
        exact, outline = ({pair[n] for pair in digests[member]} for n in (0, 1))
        print(f"| {member} | {len(exact)} | {len(outline)} |")
    rng = random.Random(7)
    outlines = Counter(
        len({view(body(remade(schema, rng), MEMBERS[0])).form for _ in range(VARIANTS)})
        for schema in schemas[:REMADE]
    )
    each = ", ".join(f"{n} of {schemas} schemas" for n, schemas in sorted(outlines.items()))
    print(f"\nOutline digests of a schema that is made anew {VARIANTS} times: {each}")
    return digests


def clock(schemas: list[Json]) -> None:
    """Print the time that reading a constraint takes."""
    plain_body = json.dumps({"model": "m", "messages": MESSAGES}).encode()
    plain = median(read_us([plain_body] * 2000))
    print(f"\nµs of `view_of` beyond those of a request without a constraint ({plain:.0f})\n")
    print("| schemas | p50 | p99 |\n|---|---|---|")
    for member in MEMBERS:
        bodies = [body(schema, member) for schema in schemas]
        print(row(f"{member}, each a new one", read_us(bodies), plain))
        print(row(f"{member}, the same again", read_us([bodies[0]] * 2000), plain))
    print("\n| made to cost much | new, µs | again, µs |\n|---|---|---|")
    made = [hostile(f"{n}") for n in range(RUNS)]
    for name, request in made[0].items():
        new = median(read_us([requests[name] for requests in made]))
        print(f"| {name} | {new:.0f} | {median(read_us([request] * RUNS)):.0f} |")


def compare(old: dict[str, Any], new: dict[str, Any]) -> None:
    """Print the pairs of schemas that one of two versions tells apart and the other does not."""
    print()
    for member in MEMBERS:
        for place, name in ((0, "exact"), (1, "outline")):
            then = [pair[place] for pair in old[member]]
            now = [pair[place] for pair in new[member]]
            alike = _pairs(list(zip(then, now, strict=True)))
            merged, parted = _pairs(now) - alike, _pairs(then) - alike
            print(f"{member}, {name}: pairs told apart before alone {merged}, now alone {parted}")


def _pairs(groups: list[Any]) -> int:
    """Pairs that are in one group."""
    return sum(size * (size - 1) // 2 for size in Counter(groups).values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path, nargs="?")
    parser.add_argument("--write", type=Path)
    parser.add_argument("--against", type=Path)
    options = parser.parse_args()
    schemas = schemas_of(options.file) if options.file else made_up(2000)
    digests = count(schemas)
    clock(schemas)
    if options.write:
        options.write.write_text(json.dumps(digests))
    if options.against:
        compare(json.loads(options.against.read_text()), digests)


if __name__ == "__main__":
    main()
