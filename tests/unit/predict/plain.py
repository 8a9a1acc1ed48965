"""The shipped encoder as a plain sentence encoder, without the output `code`.

The ONNX file is edited by a walk over its protobuf fields: the library that writes ONNX is no
dependency.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from gateway.shipped import shipped

GRAPH, OUTPUT, BYTES = 7, 12, 2  # fields of ModelProto and GraphProto; a wire type


def without_code(target: Path) -> Path:
    """Write the ONNX file without the output `code`; its path."""
    data = (shipped("models") / "encoder.onnx").read_bytes()
    model = bytearray()
    for number, raw, content in fields(data):
        if number == GRAPH:
            rest = b"".join(
                inner
                for field, inner, of in fields(content)
                if not (field == OUTPUT and CODE in of)
            )
            raw = varint(GRAPH << 3 | BYTES) + varint(len(rest)) + rest
        model += raw
    target.write_bytes(model)
    return target


CODE = b"\x04code"  # a name of four letters, with its length


def fields(data: bytes) -> Iterator[tuple[int, bytes, bytes]]:
    """Number, encoding, and content where it has a length, of each field."""
    at = 0
    while at < len(data):
        start = at
        tag, at = read_varint(data, at)
        content = b""
        if tag & 7 == BYTES:
            size, at = read_varint(data, at)
            content, at = data[at : at + size], at + size
        elif tag & 7 == 0:
            _, at = read_varint(data, at)
        else:
            at += 8 if tag & 7 == 1 else 4
        yield tag >> 3, data[start:at], content


def read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])
