"""Packing: a run's records as the bytes of a trace file, and back.

Law: what is unpacked is bounded, whatever the bytes say of themselves.
"""

from __future__ import annotations

import zlib
from typing import Final

#: A body or a plan that would be larger than this (bytes) is no work of ours.
MOST_UNPACKED: Final = 64 << 20

_WINDOW: Final = 32768  # bytes that zlib looks back


def dictionary(plan: bytes) -> bytes:
    """A run's records are full of the names of its plan: with these known, less is left to say."""
    return plan[-_WINDOW:]


def pack(body: bytes, plan: bytes) -> bytes:
    """A body, compressed."""
    packer = zlib.compressobj(level=4, zdict=dictionary(plan))
    return packer.compress(body) + packer.flush()


def unpack(packed: bytes, known: bytes = b"") -> bytes:
    """What was packed. known: its dictionary.

    Raises zlib.error, and ValueError for what is cut short or would be too large: a few bytes of a hostile file may say
    gigabytes.
    """
    unpacker = zlib.decompressobj(zdict=known) if known else zlib.decompressobj()
    unpacked = unpacker.decompress(packed, MOST_UNPACKED)
    if unpacker.unconsumed_tail:
        raise ValueError(f"it is larger than {MOST_UNPACKED} bytes")
    if not unpacker.eof:
        raise ValueError("it is cut short")
    return unpacked
