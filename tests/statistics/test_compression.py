"""Leading directions and a diagonal instead of a whole moment."""

from __future__ import annotations

import pytest
import torch
from safetensors import safe_open

from hf_edit.errors import ConfigError
from hf_edit.models.editable import EditableModel
from hf_edit.progress import Silent
from hf_edit.prompting import PromptFormat
from hf_edit.statistics.compression import Compressed, Compression
from hf_edit.statistics.config import StatisticsConfig
from hf_edit.statistics.received import check_moments
from hf_edit.statistics.store import compressed, obtain, stored


CONFIG = StatisticsConfig(tokens=256, conversations=2, length=32)
KEYS = torch.randn(400, 24, generator=torch.Generator().manual_seed(0)) * torch.logspace(1, -2, 24)
MOMENT = KEYS.T @ KEYS / len(KEYS)


@pytest.mark.parametrize("rank", [1, 5, 24, 99])
def test_it_is_a_moment_with_the_same_variances(rank: int) -> None:
    small = Compressed.of(MOMENT, Compression(rank=rank))
    dense = small.dense()
    assert small.factor.shape == (24, min(rank, 24)) and small.factor.dtype == torch.bfloat16
    assert torch.equal(dense, dense.T) and float(torch.linalg.eigvalsh(dense.double())[0]) > -1e-6
    torch.testing.assert_close(dense.diagonal(), MOMENT.diagonal(), rtol=1e-2, atol=1e-5)
    assert small.error(MOMENT) == pytest.approx(float((dense - MOMENT).norm() / MOMENT.norm()))


def test_the_error_falls_to_rounding_with_the_rank() -> None:
    errors = [Compressed.of(MOMENT, Compression(rank=rank)).error(MOMENT) for rank in (1, 3, 8, 24)]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 0.02 and errors[-1] < 0.01


def test_what_is_diagonal_needs_no_rank() -> None:
    diagonal = torch.linspace(1, 2, 24).diag()
    assert Compressed.of(diagonal, Compression(rank=1)).error(diagonal) < 1e-3


@pytest.mark.parametrize(("share", "rank"), [(0.49, 1), (0.5, 1), (0.51, 2), (0.8, 3), (0.999, 3)])
def test_the_smallest_rank_that_holds_the_share(share: float, rank: int) -> None:
    assert Compression(share=share).rank_of(torch.tensor([5.0, 2.5, 2.5, 0.0])) == rank


@pytest.mark.parametrize("text", ["0", "-3", "1.0", "0.0", "1.5", "many", "", "nan"])
def test_neither_a_rank_nor_a_share(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Compression.parsed(text)
    assert "0.95" in caught.value.remedy


def test_what_is_stored_is_small_and_loads_as_moments(view: EditableModel, chat: PromptFormat) -> None:
    linears = view.linears[:2]
    found = obtain(view, chat, linears, CONFIG, 0, Silent())
    whole = {part: {n: m.clone() for n, m in names.items()} for part, names in found.matrices.items()}
    before = [entry.path.stat().st_size for entry in stored(view)]
    entries = compressed(stored(view), Compression(rank=6))
    assert entries == stored(view) == compressed(stored(view), Compression(rank=1))  # once is enough
    assert all(entry.path.stat().st_size < size / 4 for entry, size in zip(entries, before, strict=True))
    again = obtain(view, chat, linears, CONFIG, 0, Silent())
    assert again.tokens == found.tokens and set(again.matrices) == set(whole)
    for entry, linear in zip(entries, linears, strict=True):
        assert set(entry.errors) == set(whole)
        for part, error in entry.errors.items():
            moment = whole[part][entry.linear]
            assert torch.equal(again.matrices[part][entry.linear], Compressed.of(moment, Compression(rank=6)).dense())
            assert error == pytest.approx(Compressed.of(moment, Compression(rank=6)).error(moment), rel=1e-3)
        check_moments(entry.path, linear)
        with safe_open(entry.path, "pt") as file:
            assert set(file.keys()) == {f"{part}.{kind}" for part in whole for kind in ("factor", "diagonal")}
    assert again.combined(linears[0].name, {"text": 1.0, "prompt": 0.1}).shape == (56, 56)
