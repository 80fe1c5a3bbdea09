"""Tell by its first bytes whether a file can be an ONNX model, before all of it is read. Pure.

The file is one message of Protocol Buffers (https://protobuf.dev/programming-guides/encoding): a
list of fields, each a number, how its value is written, and the value. The numbers are those of
onnx.proto.
"""

from __future__ import annotations

HEAD_BYTES = 64 << 10
_VARINT, _FIXED_64, _SIZED, _FIXED_32 = 0, 1, 2, 5
_FIXED_BYTES = {_FIXED_64: 8, _FIXED_32: 4}
_GRAPH = 7
_MODEL = {1: _VARINT, 5: _VARINT} | dict.fromkeys((2, 3, 4, 6, _GRAPH, 8, 14, 20, 25, 26), _SIZED)
"""Number of a field of a model -> how it is written."""
_OF_GRAPH = frozenset(number << 3 | _SIZED for number in (1, 2, 5, 10, 11, 12, 13, 14, 15, 16))
"""Each field of a graph: its number, and how it is written."""
_MAX_VARINT_BYTES = 10
_MARGIN_BYTES = 3 * _MAX_VARINT_BYTES
"""A field of a model, its size, and a graph's first field begin within so many bytes."""


def can_be_onnx(head: bytes, size_bytes: int) -> bool:
    """Tell whether the fields at the start of a file are those of an ONNX model.

    Fields with other numbers are skipped, since later forms of the file may have such; not the
    first one. Of a small file nothing is told: to read it all costs nothing.

    Args:
        head: The first `HEAD_BYTES` of the file.
        size_bytes: Of the whole file.
    """
    at = 0
    while size_bytes > HEAD_BYTES and at < len(head) - _MARGIN_BYTES:
        (tag, after), is_first = _varint(head, at), not at
        number, kind = tag >> 3, tag & 7
        if not number or _MODEL.get(number, None if is_first else kind) != kind:
            return False
        if kind == _VARINT:
            at = _varint(head, after)[1]
        elif kind in _FIXED_BYTES:
            at = after + _FIXED_BYTES[kind]
        elif kind == _SIZED:
            length, begin = _varint(head, after)
            if number == _GRAPH and length and _varint(head, begin)[0] not in _OF_GRAPH:
                return False
            at = begin + length
        else:
            return False
        if at > size_bytes:
            return False
    return True


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """Read a number at some place; return it and the place behind it. 0: there is none."""
    value = 0
    for index in range(_MAX_VARINT_BYTES):
        byte = data[at + index]
        value |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            return value, at + index + 1
    return 0, at + _MAX_VARINT_BYTES
