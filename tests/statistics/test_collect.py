"""Second moments against the plain mean of k k^T over the same tokens."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor

from hf_edit.errors import HfEditWarning
from hf_edit.models.editable import EditableLinear, EditableModel
from hf_edit.progress import Silent
from hf_edit.prompting import Encoded
from hf_edit.statistics.collect import collect
from hf_edit.statistics.corpus import Corpus
from hf_edit.statistics.moments import PARTS
from tests.short_of_memory import Short
from tests.snapshots import changed, snapshot
from tests.tiny import FAMILIES, tiny_model


TEXT = torch.randint(6, 512, (20, 13), generator=torch.Generator().manual_seed(0))
TALKS = (Encoded((5, 9, 11, 40, 41), 3), Encoded((7, 8), 2), Encoded((30, 31, 32, 33), 3), Encoded((6, 7, 8), 1))
CORPUS = Corpus(TEXT, TALKS, "here")


def keys_of(view: EditableModel, linear: EditableLinear, ids: Tensor) -> Tensor:
    """Inputs of the linear over (B, T) tokens, (B, T, d_in) float64, by a plain hook."""
    seen: list[Tensor] = []
    handle = linear.module.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        view.model(input_ids=ids)
    handle.remove()
    return seen[0].reshape(*ids.shape, -1).double()


@pytest.mark.parametrize("batch", [1, 3, 64])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_part_is_the_mean_over_its_tokens(family: str, batch: int) -> None:
    """`chat` is over each question, `prompt` over its last token, `answer` over what comes behind."""
    view = EditableModel.of(tiny_model(family))
    found = collect(view, CORPUS, view.linears, batch, Silent())
    assert found.tokens == {"text": 260, "chat": 9, "prompt": 4, "answer": 5} and found.source == "here"
    for linear in view.linears:
        talks = [(keys_of(view, linear, torch.tensor([talk.ids]))[0], talk.answer_start) for talk in TALKS]
        expected = {
            "text": keys_of(view, linear, TEXT).flatten(0, 1),
            "chat": torch.cat([keys[:start] for keys, start in talks]),
            "prompt": torch.stack([keys[start - 1] for keys, start in talks]),
            "answer": torch.cat([keys[start:] for keys, start in talks]),
        }
        for part, keys in expected.items():
            matrix = found.matrices[part][linear.name].double()
            mean = keys.T @ keys / len(keys)
            torch.testing.assert_close(matrix, mean, rtol=1e-4, atol=1e-5 * float(mean.abs().max()))


def test_all_linears_at_once_are_each_alone(view: EditableModel) -> None:
    linears = [*view.linears[1:3], *view.block_linears(2)]
    together = collect(view, CORPUS, linears, 8, Silent())
    for linear in linears:
        alone = collect(view, CORPUS, [linear], 8, Silent())
        assert alone.tokens == together.tokens
        for part in PARTS:
            assert torch.equal(alone.matrices[part][linear.name], together.matrices[part][linear.name])


@pytest.mark.parametrize(("talks", "parts"), [((), {"text"}), (TALKS[1:2], {"text", "chat", "prompt"})])
def test_a_part_without_tokens_is_left_out(view: EditableModel, talks: tuple[Encoded, ...], parts: set[str]) -> None:
    found = collect(view, Corpus(TEXT, talks, ""), view.linears[:1], 8, Silent())
    assert set(found.tokens) == set(found.matrices) == parts


def test_the_caller_notices_nothing(view: EditableModel) -> None:
    view.model.train()
    before = snapshot(view.model)
    collect(view, CORPUS, view.linears, 8, Silent())
    assert changed(before, snapshot(view.model)) == []


def test_too_few_tokens_are_warned_of(view: EditableModel) -> None:
    """Of the linears asked for, not of the widest there is."""
    few = Corpus(TEXT[:10], (), "")
    with pytest.warns(HfEditWarning, match=r"130 tokens for linears with 56 inputs.*at least 224"):
        collect(view, few, view.linears[:1], 8, Silent())
    narrow = [linear for linear in view.block_linears(0) if linear.d_in == 32]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        collect(view, few, narrow, 8, Silent())


def test_a_collection_in_smaller_parts_is_the_same(view: EditableModel) -> None:
    whole = collect(view, CORPUS, view.linears, 8, Silent())
    view.memory = memory = Short(2)
    found = collect(view, CORPUS, view.linears, 8, Silent())
    assert memory.ran_out == {"text", "conversations"}
    assert found.tokens == whole.tokens
    for part, matrices in whole.matrices.items():
        for name, matrix in matrices.items():
            torch.testing.assert_close(found.matrices[part][name], matrix)
