"""Cutting an answer into the chunks that are taught one key each (AnyEdit, section 4.1)."""

from __future__ import annotations

from typing import NamedTuple


class Chunk(NamedTuple):
    """Answer tokens [start, end); the answer counts its end-of-turn token."""

    start: int
    end: int


def windows(length: int, size: int, overlap: int = 0) -> list[Chunk]:
    """Fixed windows over an answer of `length` tokens; the last one ends with the answer.

    Args:
        length: A >= 1
        size: W > overlap
        overlap: tokens shared by neighbouring windows
    """
    chunks: list[Chunk] = []
    while not chunks or chunks[-1].end < length:
        start = len(chunks) * (size - overlap)
        chunks.append(Chunk(start, min(start + size, length)))
    return chunks


def key_position(answer_start: int, chunk: Chunk) -> int:
    """The token just before the chunk: its hidden state is what the chunk's first token is predicted from."""
    return answer_start + chunk.start - 1
