"""Cutting an answer into the chunks that are taught one key each (AnyEdit, section 4.1).

Every chunker takes what it cuts by and returns chunks that cover the answer, ascending by start and by end. An answer
of A tokens counts its end-of-turn token.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple


CHUNKERS = ("window", "sentence", "surprisal", "none")

# closing marks belong to the sentence; Chinese and Japanese put no space behind it; a line is a sentence of its own
SENTENCE_END = re.compile(r"""(?:[.!?…]+["'”’»)\]]*(?=\s))|(?:[。！？]+[”’」』）]*)|\n""")


class Chunk(NamedTuple):
    """Answer tokens [start, end)."""

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


def sentence_ends(pieces: Sequence[str]) -> list[int]:
    """The tokens behind which an answer can be cut between sentences, as ascending counts from its beginning.

    A sentence that ends inside a token ends behind that token. Nothing is cut where no text follows.

    Args:
        pieces: the text that each token adds (`PromptFormat.pieces`).
    """
    text, reached = "".join(pieces), list(accumulate(map(len, pieces)))
    ends = {
        next(count for count, characters in enumerate(reached, start=1) if characters >= found.end())
        for found in SENTENCE_END.finditer(text)
    }
    return sorted(end for end in ends if "".join(pieces[end:]).strip())


def sentences(length: int, ends: Sequence[int], smallest: int, largest: int) -> list[Chunk]:
    """Sentences, joined to the next while shorter than `smallest` and split evenly where longer than `largest`.

    No chunk is shorter than `smallest`, unless the answer is or `largest` + 1 < 2 * `smallest` leaves no other way.

    Args:
        length: A >= 1
        ends: where sentences end, ascending, of 1 .. A - 1
        smallest, largest: limits of a chunk in tokens; `largest` prevails.
    """
    cuts = [0]
    for end in ends:
        if end - cuts[-1] >= smallest:
            cuts.append(end)
    if length - cuts[-1] < smallest and len(cuts) > 1:
        cuts.pop()
    return [part for start, end in pairwise([*cuts, length]) for part in _split(start, end, largest)]


def surprising(surprisals: Sequence[float], size: int) -> list[Chunk]:
    """Chunks begun by the most surprising tokens, as many as windows of `size` tokens (AnyEdit++, arXiv 2606.01053).

    Where the first token is not among them, it begins one chunk more. Of equally surprising tokens the earlier counts.
    Chunks have no largest length.

    Args:
        surprisals: (A,) -log p of each token under the unedited model.
        size: W >= 1; ceil(A / W) tokens are boundaries.
    """
    length = len(surprisals)
    by_surprisal = sorted(range(length), key=lambda token: -surprisals[token])
    starts = {0, *by_surprisal[: -(-length // size)]}
    return [Chunk(start, end) for start, end in pairwise([*sorted(starts), length])]


def key_position(answer_start: int, chunk: Chunk) -> int:
    """The token just before the chunk: its hidden state is what the chunk's first token is predicted from."""
    return answer_start + chunk.start - 1


def _split(start: int, end: int, largest: int) -> list[Chunk]:
    """[start, end) in the fewest parts of at most `largest` tokens; their lengths differ by one at most."""
    count = -(-(end - start) // largest)
    cuts = [start + index * (end - start) // count for index in range(count + 1)]
    return [Chunk(*pair) for pair in pairwise(cuts)]
