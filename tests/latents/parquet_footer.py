"""The metadata of Parquet files as values that a test can change: Thrift's compact protocol."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

MAGIC = b"PAR1"
BYTE, INTEGERS, DOUBLE, BINARY, LISTS, MAP, STRUCT = 3, (4, 5, 6), 7, 8, (9, 10), 11, 12


@dataclass(slots=True)
class Field:
    """One field of a structure."""

    number: int
    kind: int
    """1 and 2 are true and false, without a value."""
    value: Any
    """An integer, bytes, a list of fields (a structure) or `Items`."""


@dataclass(slots=True)
class Items:
    """A list."""

    kind: int
    values: list[Any]


def split(content: bytes) -> tuple[bytes, list[Field]]:
    """The pages of a Parquet file with the magic before them, and its footer."""
    num_bytes = int.from_bytes(content[-8:-4], "little")
    pages, footer = content[: -8 - num_bytes], content[-8 - num_bytes : -8]
    return pages, _Reader(footer).struct()


def join(pages: bytes, footer: list[Field]) -> bytes:
    """Inverse of `split`."""
    written = write_struct(footer)
    return pages + written + len(written).to_bytes(4, "little") + MAGIC


def read_struct(content: bytes, position: int) -> tuple[list[Field], int]:
    """The structure at a position, and where it ends."""
    reader = _Reader(content, position)
    return reader.struct(), reader.position


def write_struct(fields: list[Field]) -> bytes:
    """Inverse of `read_struct`."""
    return b"".join(_write_fields(fields)) + b"\0"


def places(value: Any) -> Iterator[tuple[Any, str | int, int]]:
    """Each changeable place below a structure or list: its holder, the key in it, and its kind."""
    if isinstance(value, Items):
        for index, one in enumerate(value.values):
            yield value.values, index, value.kind
            yield from places(one)
    elif isinstance(value, list):
        for field in value:
            yield field, "value", field.kind
            yield from places(field.value)


def find(fields: list[Field], number: int) -> Any:
    """The value of a field of a structure; None where it is not there."""
    return next((field.value for field in fields if field.number == number), None)


class _Reader:
    def __init__(self, content: bytes, position: int = 0) -> None:
        self._content = content
        self.position = position

    def struct(self) -> list[Field]:
        fields: list[Field] = []
        number = 0
        while head := self._byte():
            delta, kind = head >> 4, head & 15
            number = number + delta if delta else self._integer()
            fields.append(Field(number, kind, self._value(kind)))
        return fields

    def _value(self, kind: int) -> Any:
        if kind in (1, 2):
            return None
        if kind == BYTE:
            return self._byte()
        if kind in INTEGERS:
            return self._integer()
        if kind == DOUBLE:
            return self._take(8)
        if kind == BINARY:
            return self._take(self._varint())
        if kind in LISTS:
            head = self._byte()
            size = self._varint() if head >> 4 == 15 else head >> 4
            kind = head & 15
            read = self._byte if kind in (1, 2) else lambda: self._value(kind)
            return Items(kind, [read() for _ in range(size)])
        if kind == STRUCT:
            return self.struct()
        raise ValueError(f"Parquet has no type {kind}")

    def _byte(self) -> int:
        self.position += 1
        return self._content[self.position - 1]

    def _take(self, num_bytes: int) -> bytes:
        self.position += num_bytes
        return self._content[self.position - num_bytes : self.position]

    def _varint(self) -> int:
        value = shift = 0
        while True:
            byte = self._byte()
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    def _integer(self) -> int:
        value = self._varint()
        return (value >> 1) ^ -(value & 1)


def _write_fields(fields: list[Field]) -> Iterator[bytes]:
    before = 0
    for field in fields:
        if 0 < field.number - before < 16:
            yield bytes([field.number - before << 4 | field.kind])
        else:
            yield bytes([field.kind]) + _zigzag(field.number)
        yield _write_value(field.kind, field.value)
        before = field.number


def _write_value(kind: int, value: Any) -> bytes:
    if isinstance(value, bytes):
        return value if kind == DOUBLE else _varint(len(value)) + value
    if isinstance(value, Items):
        items = b"".join(_write_item(value.kind, one) for one in value.values)
        return _list_head(len(value.values), value.kind) + items
    if isinstance(value, list):
        return write_struct(value)
    if value is None:
        return b""
    return bytes([value & 255]) if kind == BYTE else _zigzag(value)


def _write_item(kind: int, value: Any) -> bytes:
    return bytes([value]) if kind in (1, 2) else _write_value(kind, value)


def _list_head(size: int, kind: int) -> bytes:
    return bytes([size << 4 | kind]) if size < 15 else bytes([0xF0 | kind]) + _varint(size)


def _zigzag(value: int) -> bytes:
    return _varint((value << 1) ^ (value >> 63) if -(2**63) <= value < 2**63 else value)


def _varint(value: int) -> bytes:
    value &= 2**64 - 1
    written = bytearray()
    while value > 127:
        written.append(value & 127 | 128)
        value >>= 7
    return bytes([*written, value])
