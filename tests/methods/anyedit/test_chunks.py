from __future__ import annotations

from math import ceil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_edit.methods.anyedit.chunks import Chunk, key_position, sentence_ends, sentences, surprising, windows


def check_cover(chunks: list[Chunk], length: int) -> None:
    assert chunks[0].start == 0 and chunks[-1].end == length
    assert all(chunk.start < chunk.end for chunk in chunks)
    for one, other in zip(chunks, chunks[1:], strict=False):
        assert one.start < other.start <= one.end < other.end


@given(length=st.integers(1, 200), size=st.integers(1, 50), overlap=st.integers(0, 49))
def test_windows(length: int, size: int, overlap: int) -> None:
    overlap = min(overlap, size - 1)
    chunks = windows(length, size, overlap)
    check_cover(chunks, length)
    assert all(chunk.end - chunk.start == size for chunk in chunks[:-1])
    assert chunks[-1].end - chunks[-1].start <= size
    assert all(one.end - other.start == overlap for one, other in zip(chunks, chunks[1:], strict=False))
    assert overlap or len(chunks) == ceil(length / size)


def test_windows_end_with_the_answer() -> None:
    """The last overlapping window would otherwise be followed by one inside it."""
    assert windows(10, 6, 3) == [(0, 6), (3, 9), (6, 10)]
    assert windows(9, 6, 3) == [(0, 6), (3, 9)]
    assert windows(5, 4) == [(0, 4), (4, 5)]
    assert windows(3, 100) == [(0, 3)]


@given(
    length=st.integers(1, 120),
    smallest=st.integers(1, 20),
    largest=st.integers(1, 40),
    ends=st.sets(st.integers(1, 119)),
)
def test_sentences(length: int, smallest: int, largest: int, ends: set[int]) -> None:
    ends = {end for end in ends if end < length}
    chunks = sentences(length, sorted(ends), smallest, largest)
    check_cover(chunks, length)
    sizes = [chunk.end - chunk.start for chunk in chunks]
    assert max(sizes) <= largest
    assert min(sizes) >= smallest or length < smallest or largest + 1 < 2 * smallest
    assert all(one.end == other.start for one, other in zip(chunks, chunks[1:], strict=False))
    if largest >= length and smallest == 1:
        assert {chunk.start for chunk in chunks} == {0, *ends}


def test_sentences_are_joined_and_split() -> None:
    assert sentences(12, [2, 7, 10], smallest=3, largest=12) == [(0, 7), (7, 12)]  # 2 too short, and so is the rest
    assert sentences(12, [], smallest=3, largest=5) == [(0, 4), (4, 8), (8, 12)]
    assert sentences(2, [1], smallest=3, largest=5) == [(0, 2)]


@pytest.mark.parametrize(
    ("pieces", "ends"),
    [
        (["It", " is", ".", " He", " was", "!", "?", " So", ".", ""], [3, 7]),
        (["He", " said", ' "', "No", '."', " Then", " he", " left", ""], [5]),
        (["Pi", " is", " 3", ".", "14", "15", " in", " e", ".g", ".", " maths", "."], [10]),
        (["One", ".\n\n", "Two", ".\n", ""], [2]),
        (["x", " =", " 1", "\n", "y", " =", " 2", ""], [4]),
        (["日本", "。「", "東京", "！", "」", "", "はい", "。"], [2, 5]),
        (["Just", " one", "."], []),
        (["No", ". A", " new"], [2]),
        (["", ""], []),
    ],
)
def test_where_sentences_end(pieces: list[str], ends: list[int]) -> None:
    assert sentence_ends(pieces) == ends


@given(text=st.text("ab. !?\n。」", max_size=30), cuts=st.lists(st.integers(0, 30)))
def test_sentences_end_within_the_answer(text: str, cuts: list[int]) -> None:
    cuts = sorted({0, *(cut for cut in cuts if cut < len(text)), len(text)})
    pieces = [text[start:end] for start, end in zip(cuts, cuts[1:], strict=False)] + [""]
    ends = sentence_ends(pieces)
    assert ends == sorted(set(ends))
    assert all(1 <= end < len(pieces) and "".join(pieces[end:]).strip() for end in ends)


@given(surprisals=st.lists(st.floats(0, 20), min_size=1, max_size=120), size=st.integers(1, 40))
def test_surprising_tokens_begin_chunks(surprisals: list[float], size: int) -> None:
    chunks = surprising(surprisals, size)
    check_cover(chunks, len(surprisals))
    count = ceil(len(surprisals) / size)
    most = sorted(range(len(surprisals)), key=lambda token: (-surprisals[token], token))[:count]
    assert {chunk.start for chunk in chunks} == {0, *most}
    assert len(chunks) == count + (0 not in most)


def test_equally_surprising_tokens() -> None:
    assert surprising([9.0, 1.0, 1.0, 1.0, 1.0], size=2) == [(0, 1), (1, 2), (2, 5)]
    assert surprising([1.0, 9.0, 9.0, 1.0, 9.0], size=2) == [(0, 1), (1, 2), (2, 4), (4, 5)]
    assert surprising([1.0, 9.0, 2.0], size=40) == [(0, 1), (1, 3)]


def test_a_key_sits_before_its_chunk() -> None:
    assert key_position(10, Chunk(0, 4)) == 9
    assert key_position(10, Chunk(4, 8)) == 13
