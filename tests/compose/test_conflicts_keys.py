"""What factors and keys tell of two packs, against plain dense references."""

from __future__ import annotations

import pytest
import torch

from hf_edit.compose.conflicts.keys import (
    alike_keys,
    content_cosines,
    key_overlaps,
    keys_of,
    range_overlaps,
)
from hf_edit.compose.conflicts.report import EditName, Finding
from hf_edit.edits import Edit, EditSet
from hf_edit.models.editable import EditableModel
from hf_edit.prompting import PromptFormat
from hf_edit.solvers.low_rank import LowRankDelta
from tests.packs.make import random_deltas
from tests.tiny import tiny_model, tiny_tokenizer


def delta(rows: list[list[float]], outputs: int = 3) -> LowRankDelta:
    A = torch.tensor(rows, dtype=torch.float32)
    return LowRankDelta(torch.randn(outputs, len(A)), A)


@pytest.mark.parametrize(
    ("first", "second", "shared"),
    [
        ([[1, 0, 0, 0]], [[0, 1, 0, 0]], 0),
        ([[1, 0, 0, 0]], [[3, 0, 0, 0]], 1),
        ([[1, 0, 0, 0]], [[1, 1, 0, 0]], 0.5),
        ([[1, 0, 0, 0]], [[1, 1, 0, 0], [0, 1, 0, 0]], 1),
        ([[1, 0, 0, 0], [0, 1, 0, 0]], [[0, 1, 0, 0], [0, 0, 1, 0]], 0.5),
        ([[1, 0, 0, 0], [2, 0, 0, 0]], [[0, 1, 0, 0], [0, 1, 0, 0]], 0),  # of lower rank than they have rows
    ],
)
def test_range_in_common(first: list[list[float]], second: list[list[float]], shared: float) -> None:
    (overlap,) = range_overlaps([{"m": delta(first)}, {"m": delta(second)}])
    assert overlap.shared == pytest.approx(shared, abs=1e-6)
    assert (overlap.module, overlap.first, overlap.second) == ("m", 0, 1)


def test_columns_that_write_nothing_read_nothing() -> None:
    silent = LowRankDelta(torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 0.0]]), torch.eye(4)[:2])
    (overlap,) = range_overlaps([{"m": silent}, {"m": delta([[0, 1, 0, 0]])}])
    assert overlap.shared == pytest.approx(0, abs=1e-9)


def test_crosstalk_and_chance_against_dense_matrices() -> None:
    one, other = (LowRankDelta(torch.randn(9, r), torch.randn(r, 12)) for r in (2, 5))
    (overlap,) = range_overlaps([{"m": one}, {"m": other}])
    dense = [d.dense().double() for d in (one, other)]
    projectors = [torch.linalg.pinv(d.A.double()) @ d.A.double() for d in (one, other)]
    assert overlap.shared == pytest.approx(float((projectors[0] @ projectors[1]).trace()) / 2, rel=1e-5)
    assert overlap.crosstalk[0] == pytest.approx(float((dense[1] @ projectors[0]).norm() / dense[0].norm()), rel=1e-5)
    assert overlap.crosstalk[1] == pytest.approx(float((dense[0] @ projectors[1]).norm() / dense[1].norm()), rel=1e-5)
    assert overlap.chance == 5 / 12


def test_modules_of_one_pack_alone_or_of_other_widths_are_left_out() -> None:
    packs = [{"m": delta([[1, 0, 0, 0]]), "n": delta([[1, 0]])}, {"n": delta([[1, 0, 0]]), "o": delta([[1.0]])}]
    assert list(range_overlaps(packs)) == []
    zero = {"m": LowRankDelta(torch.zeros(3, 1), torch.zeros(1, 4))}
    (overlap,) = range_overlaps([zero, {"m": delta([[1, 0, 0, 0]])}])
    assert (overlap.shared, overlap.crosstalk) == (0, (0, 0))


EDITS = [
    EditSet([Edit("What is the capital of Veldora?", "Osk", id="a"), Edit("Tell me about Mount Fuji", "No", id="b")]),
    EditSet([Edit("what is the capital of Veldora", "Tern", id="c")]),
]
NAMES = [EditName(0, "one", "a"), EditName(0, "one", "b"), EditName(1, "two", "c")]


@pytest.mark.parametrize("format", ["chat", "plain"])
def test_keys_are_the_inputs_at_the_last_token_and_at_content_words(format: str) -> None:
    model = tiny_model()
    view, prompts = EditableModel.of(model), PromptFormat.of(format, tiny_tokenizer())
    linears = view.linears[1:3]
    keys = keys_of(view, linears, prompts, EDITS[0])
    for row, (edit, words) in enumerate(zip(EDITS[0], (("capital", "Veldora"), ("Mount", "Fuji")), strict=True)):
        ids = torch.tensor([prompts.prompt_ids(edit.prompt)])
        places = [prompts.last_token_of(edit.prompt, word) for word in words]
        inputs = view.trace(ids, inputs=linears).inputs  # alone, without padding
        for linear in linears:
            expected = inputs[linear.name][0]
            assert torch.allclose(keys.last[linear.name][row], expected[-1], atol=1e-4)
            assert torch.allclose(keys.content[linear.name][row], expected[places].mean(dim=0), atol=1e-4)


def test_cosines_and_crosstalk_at_keys() -> None:
    model = tiny_model()
    view, prompts = EditableModel.of(model), PromptFormat.of("chat", tiny_tokenizer())
    packs = [random_deltas(model, (1, 5)), random_deltas(model, (2, 3, 1), seed=1)]
    keys = [keys_of(view, view.linears[:3], prompts, edits) for edits in EDITS]
    overlaps = {overlap.module: overlap for overlap in key_overlaps(packs, keys)}
    assert list(overlaps) == [linear.name for linear in view.linears[:3]]
    name = view.linears[0].name
    k = keys[0].last[name]
    ratio = (k @ packs[1][name].dense().T).norm() / (k @ packs[0][name].dense().T).norm()
    crosstalk = overlaps[name].crosstalk
    assert crosstalk is not None and crosstalk[0] == pytest.approx(float(ratio), rel=1e-4)
    assert overlaps[view.linears[2].name].crosstalk is None  # only one of them changes it
    single = torch.cosine_similarity(k, keys[1].last[name])
    assert overlaps[name].last == pytest.approx((float(single.mean()), float(single.max())), abs=1e-5)

    cosines = content_cosines(keys)
    means = [torch.cosine_similarity(keys[0].content[m][0], keys[1].content[m][0], dim=0) for m in overlaps]
    assert float(cosines[0, 2]) == pytest.approx(float(torch.stack(means).mean()), abs=1e-5)
    assert cosines[0, 2] > cosines[1, 2]


def test_alike_keys_name_each_pair_once_and_only_across_packs() -> None:
    cosines = torch.tensor([[1.0, 0.99, 0.96], [0.99, 1.0, 0.2], [0.96, 0.2, 1.0]])
    (finding,) = alike_keys(cosines, NAMES, [])
    assert (finding.kind, finding.first.id, finding.second.id, finding.conflict) == ("keys", "a", "c", False)
    assert finding.score == pytest.approx(0.96)
    assert alike_keys(cosines, NAMES, [Finding("question", NAMES[0], NAMES[2], 1.0, "known")]) == []
