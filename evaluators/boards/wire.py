"""Messages between this machine and a board: JSON, with its arrays behind it as .npy. Nothing is pickled, so an answer can be wrong but runs no code."""

import json
import struct
from collections.abc import Iterator
from io import BytesIO
from typing import Any, BinaryIO

import numpy as np

LENGTH = struct.Struct(">Q")
ARRAY = "$array"  # the key under which JSON names an array by its number
MOST_BYTES = 1 << 30  # of one message
BLOCK = 1 << 18  # bytes of a file that are read and sent at once


def pack(value: Any) -> bytes:
    """A message of JSON values and arrays, with its length in front. Tuples arrive as lists, NumPy's numbers as Python's."""
    arrays: list[np.ndarray] = []

    def plain(item: Any) -> Any:
        if isinstance(item, np.generic):
            return item.item()
        if not isinstance(item, np.ndarray):
            raise TypeError(f"{type(item).__name__} cannot be sent to a board or back")
        arrays.append(item)
        return {ARRAY: len(arrays) - 1}

    text = json.dumps(value, default=plain).encode()
    body = BytesIO()
    body.write(LENGTH.pack(len(text)) + text)
    for array in arrays:
        np.lib.format.write_array(body, array, allow_pickle=False)
    return LENGTH.pack(body.tell()) + body.getvalue()


def unpack(body: bytes) -> Any:
    """The value of a message without the length in front. ValueError for what is not one."""
    try:
        size = length(body[: LENGTH.size])
        stream = BytesIO(body)
        stream.seek(LENGTH.size + size)
        arrays = []
        while stream.tell() < len(body):
            arrays.append(np.lib.format.read_array(stream, allow_pickle=False))
        return json.loads(body[LENGTH.size : LENGTH.size + size], object_hook=lambda found: arrays[found[ARRAY]] if ARRAY in found else found)
    except (struct.error, IndexError, TypeError) as error:
        raise ValueError(f"not a message: {error}") from error


def length(head: bytes) -> int:
    """Bytes that follow. ValueError where nobody would send so many."""
    (size,) = LENGTH.unpack(head)
    if size > MOST_BYTES:
        raise ValueError(f"a message of {size} bytes")
    return size


def receive(stream: BinaryIO) -> Any:
    """The next message, None where the stream has ended."""
    head = stream.read(LENGTH.size)
    return unpack(stream.read(length(head))) if len(head) == LENGTH.size else None


def send(stream: BinaryIO, value: Any) -> None:
    stream.write(pack(value))
    stream.flush()


def blocks(stream: BinaryIO, size: int) -> Iterator[bytes]:
    """`size` bytes of a stream. EOFError where it ends before."""
    while size:
        block = stream.read(min(size, BLOCK))
        if not block:
            raise EOFError
        size -= len(block)
        yield block
