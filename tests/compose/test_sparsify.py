"""Packs solved anew on few columns."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hf_edit.compose.asked import taught_by
from hf_edit.compose.sparsify import SparsifyConfig, moments_for, sparsify
from hf_edit.errors import BaseMismatchError, ConfigError
from hf_edit.methods.joining.asked import keys_of
from hf_edit.models.borrow import borrowed
from hf_edit.models.editable import EditableModel
from hf_edit.packs.pack import EditPack
from hf_edit.prompting import PromptFormat
from hf_edit.solvers.ridge import penalty
from hf_edit.solvers.support import touched_columns
from hf_edit.statistics.config import StatisticsConfig
from tests.packs.make import make_pack
from tests.snapshots import snapshot
from tests.tiny import tiny_model, tiny_tokenizer


# some tiny models invent no question for the statistics
pytestmark = pytest.mark.filterwarnings("ignore::hf_edit.errors.HfEditWarning")

QUICK = SparsifyConfig(
    statistics=StatisticsConfig(tokens=256, conversations=4, answer_tokens=4, length=64, batch=4), preservation=0.1
)


def solved(pack: EditPack, family: str = "llama", **budget: int) -> EditPack:
    return sparsify(pack, model=tiny_model(family), tokenizer=tiny_tokenizer(), config=QUICK, **budget)


def missed(sparse: EditPack, pack: EditPack, family: str) -> float:
    """How far the sparse update is from the pack's at the edits' own tokens, relative."""
    view = EditableModel.of(tiny_model(family))
    wrong = whole = 0.0
    with borrowed(view.model):
        linears = view.linears_named(pack.deltas)
        for taught in taught_by(view, PromptFormat.of("chat", tiny_tokenizer()), pack, linears):
            keys = keys_of(view, taught.asked, linears, linears[0].layer)
            for name, delta in sparse.deltas.items():
                wrong += float((keys[name] @ delta.dense().T - taught.asked.values[name]).square().sum())
                whole += float(taught.asked.values[name].square().sum())
    return (wrong / whole) ** 0.5


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_it_adds_what_the_pack_adds_and_touches_few_columns(family: str, tmp_path: Path) -> None:
    model = tiny_model(family)
    before, pack = snapshot(model), make_pack(model)
    few = sparsify(pack, model=model, tokenizer=tiny_tokenizer(), columns=8, config=QUICK)
    assert snapshot(model) == before
    many = solved(pack, family, columns=32)
    assert all(len(touched_columns(delta)[0]) == 8 for delta in few.deltas.values())
    assert missed(many, pack, family) < missed(few, pack, family) < 0.9
    assert missed(many, pack, family) < 0.3
    few.save_pretrained(tmp_path / "sparse", layout="sparse")
    few.verify(model)
    assert few.edits == pack.edits and few.manifest.parents[0]["method"]["name"] == "anyedit"
    assert few.manifest.method.name == "sparsify" and few.manifest.method.config["columns"] == 8


def test_it_is_the_ridge_over_the_edits_tokens_against_the_moments() -> None:
    pack = make_pack(tiny_model(), (2,))
    sparse = solved(pack, columns=6)
    (name,) = pack.deltas
    C = moments_for(pack, model=tiny_model(), tokenizer=tiny_tokenizer(), config=QUICK)[name]
    view = EditableModel.of(tiny_model())
    with borrowed(view.model):
        linears = view.linears[:1]
        every = list(taught_by(view, PromptFormat.of("chat", tiny_tokenizer()), pack, linears))
        keys = [keys_of(view, taught.asked, linears, 0)[name] for taught in every]
    K = torch.cat(keys).double().T
    R = torch.cat([taught.asked.values[name] for taught in every]).double().T
    S, values = touched_columns(sparse.deltas[name])
    M = (penalty(C, QUICK.preservation, QUICK.ridge).matrix() + K @ K.T)[S][:, S]
    expected = torch.linalg.solve(M, K[S] @ R.T).T
    torch.testing.assert_close(values.double(), expected, rtol=1e-4, atol=1e-5)


def test_a_budget_in_bytes_is_kept() -> None:
    pack = make_pack(tiny_model())
    each = 3 * (4 * 32 + 4)
    sparse = solved(pack, bytes=5 * each + 1)
    assert [delta.rank for delta in sparse.deltas.values()] == [5, 5, 5]
    tensors = sparse.adapter_state_dict("sparse").values()
    assert sum(tensor.numel() * tensor.element_size() for tensor in tensors) == 5 * each
    assert [delta.rank for delta in solved(pack, bytes=10**9).deltas.values()] == [32, 32, 32]


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        ({}, "columns=None and bytes=None"),
        ({"columns": 3, "bytes": 4}, "columns=3 and bytes=4"),
        ({"columns": 0}, r"columns = 0 is outside 1\.\.32"),
        ({"columns": 33}, r"columns = 33 is outside 1\.\.32"),
        ({"bytes": 100}, "below one column of each"),
    ],
)
def test_budgets_that_make_no_sense(budget: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        solved(make_pack(tiny_model()), **budget)


def test_another_base_and_another_tokenizer_are_refused() -> None:
    pack = make_pack(tiny_model())
    with pytest.raises(BaseMismatchError):
        sparsify(pack, model=tiny_model(seed=1), tokenizer=tiny_tokenizer(), columns=2, config=QUICK)
    with pytest.raises(ConfigError, match="tokenizer"):
        sparsify(pack, model=tiny_model(), tokenizer=tiny_tokenizer("sentencepiece"), columns=2, config=QUICK)
