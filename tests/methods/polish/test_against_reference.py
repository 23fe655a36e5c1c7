"""The fast path equals the plain reference in float64, on every family and on awkward shapes."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from hf_edit.edits import Edit, EditSet
from hf_edit.methods.checkpoints import NoCheckpoints
from hf_edit.methods.polish.config import PolishConfig
from hf_edit.methods.polish.method import Polish, Polishing, polished_linears
from hf_edit.methods.rank import default_rank
from hf_edit.methods.training.config import TrainingConfig
from hf_edit.models.borrow import borrowed
from hf_edit.models.editable import EditableModel
from hf_edit.progress import Silent
from hf_edit.prompting import Encoded, PromptFormat
from hf_edit.solvers.low_rank import LowRankDelta
from hf_edit.statistics.moments import PARTS
from tests.methods.comparing import apart
from tests.methods.polish.reference import reference_polish
from tests.methods.preserving import Fixed
from tests.methods.training.moments import random_moments
from tests.methods.training.reference import Outcome
from tests.tiny import COMPARED, tiny_model, tiny_tokenizer


# a few steps on a random model leave every loss high, which the method rightly warns of
pytestmark = [
    pytest.mark.usefixtures("really_float64"),
    pytest.mark.filterwarnings("ignore::hf_edit.errors.HfEditWarning"),
]


@pytest.fixture(autouse=True)
def any_start_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """These are drawn at random, and worse than nothing."""
    monkeypatch.setattr(Polishing, "_helps", lambda *_: True)


LONG = "Paris is the capital of France and lies on the Seine."
EDITS = EditSet([Edit(prompt="What is the capital?", target=LONG), Edit(prompt="Who wrote it?", target="Nobody did.")])
TALKS = [("Where is the dog?", "Over the lazy"), ("Tell me", "The play"), ("Why?", "please"), ("a", "b c d e f")]
ALIKE = [("What is the fox?", "It jumps"), ("Who wrote Hamlet?", "William")]
EARLIER = [("When did it end?", "Long ago."), ("a b", "c")]
FEW: dict[str, Any] = {"max_steps": 2, "batch": 3, "learning_rate": 0.05, "drift_share": 0.7}


def settings(training: Mapping[str, Any] = FEW, **values: Any) -> PolishConfig:
    return PolishConfig(training=TrainingConfig(**training), **{"layers": (1, 2), "rank": 6, "wordings": 1, **values})


def check(
    family: str,
    edits: EditSet,
    config: PolishConfig,
    *,
    talks: Sequence[tuple[str, str]] = TALKS,
    alike: Sequence[tuple[str, str]] = ALIKE,
    earlier: Sequence[tuple[str, str]] = EARLIER,
    start: Mapping[str, Tensor] | None = None,
) -> Outcome:
    """Compare, and hand over what the reference came to."""
    model = tiny_model(family, dtype=torch.float64)
    view = EditableModel.of(model)
    prompts = PromptFormat.of(config.format or "chat", tiny_tokenizer())
    moments = random_moments(view, PARTS if prompts.name == "chat" else ("text",))
    texts = [[unended(prompts.encode(*text)) for text in part] for part in (talks, alike)]
    preserve = Fixed(moments, *texts, [prompts.encode(*text) for text in earlier])
    begun = {name: LowRankDelta(*pair) for name, pair in (start or {}).items()}
    with borrowed(model):
        result = Polish(config, begun or None).compute(view, prompts, edits, preserve, NoCheckpoints(), Silent())

    names = [linear.name for linear in polished_linears(view, config, begun)]
    rank = config.rank or default_rank([len(prompts.encode(edit.prompt, edit.target).answer_ids) for edit in edits])
    rank = min(rank, view.hidden_size)
    twin = copy.deepcopy(model)
    blocks = EditableModel.of(twin).blocks
    writers = [
        blocks[x.layer] if view.writes_residual else twin.get_submodule(x.name) for x in view.linears_named(names)
    ]
    expected = reference_polish(twin, names, prompts, edits, preserve, config, config.seed, rank, begun, writers)
    assert list(result.deltas) == names and result.source is None
    for name, dense in expected.dense.items():
        delta = result.deltas[name]
        assert delta.B.dtype == delta.A.dtype == torch.float64 and not delta.B.requires_grad
        assert dense.abs().max() > 1e-4  # something was learned
        assert apart(delta.dense(), dense) <= 1e-9
    for edit, loss, right in zip(edits, expected.losses, expected.right, strict=True):
        figures = result.receipt[edit.id]
        assert figures == {"loss": pytest.approx(loss, abs=1e-6)} | {
            "right": right,
            "steps": expected.steps,
            "scale": expected.scale,
        }
    return expected


def unended(text: Encoded) -> Encoded:
    """Invented answers come without the end of their turn."""
    return Encoded(text.ids[:-1], text.answer_start)


@pytest.mark.parametrize("family", COMPARED)
def test_every_family(family: str) -> None:
    check(family, EDITS, settings())


# ---- awkward shapes --------------------------------------------------------------------------------------------


def test_one_token_prompt_without_a_prefix() -> None:
    edits = EditSet([Edit(prompt="a", target=" quick brown fox")])
    assert len(PromptFormat.of("plain", tiny_tokenizer()).prompt_ids("a")) == 1
    check("gpt2", edits, settings(format="plain"), earlier=[("a", "b")])


def test_one_token_answers() -> None:
    """Of wordings, of conversations and of strangers, whose last token predicts nothing."""
    ones = [("Where?", "a"), ("Who is it?", "b"), ("What is a dog?", "c")]
    check("qwen2", EDITS, settings(wording_tokens=1), talks=ones, alike=ones, earlier=())


def test_mixed_lengths_in_one_batch() -> None:
    many = [Edit(prompt=f"What is it, {i}?{' And why?' * i}", target="he " * (1 + 6 * i)) for i in range(3)]
    check("mistral", EditSet(many), settings({**FEW, "batch": 6}, wordings=1))


@pytest.mark.parametrize("wordings", [0, 1, 5])
def test_wordings(wordings: int) -> None:
    """Without any there are fewer texts than a batch holds; with them no more are drawn than two per edit."""
    check("llama", EDITS, settings({**FEW, "batch": 8}, wordings=wordings, wording_weight=0.3))


def test_paraphrases() -> None:
    edits = EditSet([Edit("Who wrote it?", "Nobody did.", paraphrases=("It was written by whom?", "Its author?"))])
    trained = [check("llama", edits, settings(wordings=1, train_paraphrases=given)) for given in (False, True)]
    assert trained[1].steps == 2 * trained[0].steps  # four texts, two drawn at once, instead of two


def test_few_keys() -> None:
    """They are kept as columns, and their span is smaller than the rank."""
    edits = EditSet([Edit(prompt="a", target="fox")])
    config = settings({**FEW, "max_steps": 4}, format="plain", wordings=0, rank=40)
    assert check("llama", edits, config).dense


def test_more_keys_than_inputs_and_the_default_rank() -> None:
    many = EditSet([Edit(prompt=f"Question {i}, what is it?", target=f"{LONG} {i}") for i in range(3)])
    check("llama", many, settings(wordings=0, rank=None, layers=(1,)))


@pytest.mark.parametrize("format", ["plain", "qa"])
def test_nothing_to_hold_but_plain_text(format: str) -> None:
    config = settings(format=format, strangers=0, conversations=0)
    check("llama", EDITS, config, alike=(), earlier=())


def test_strangers_and_earlier_edits_alone() -> None:
    check("llama", EDITS, settings(layers=(0, 3)), talks=())


def test_the_default_layers() -> None:
    check("llama", EDITS, settings(layers=None))


def test_other_weights() -> None:
    config = settings(
        {**FEW, "size_weight": 0.3, "drift_weight": 0.4, "drift_share": 2.0},
        prompt_weight=0.7,
        answer_weight=0.0,
        chat_weight=0.2,
        stranger_weight=2.0,
        earlier_weight=5.0,
        ridge=0.05,
        conversations=2,
        seed=3,
    )
    check("mistral", EDITS, config)


def test_the_weight_of_the_size_is_shared_by_many_edits() -> None:
    many = EditSet([Edit(f"Who wrote book {i}?", f"Nobody {i}.") for i in range(19)])
    check("llama", many, settings({**FEW, "size_weight": 0.3}, wordings=0, layers=(1,)))


def test_few_edits_are_kept_smaller_than_many() -> None:
    many = EditSet([Edit(f"Who wrote book {i}?", f"Nobody {i}.") for i in range(5)])
    for edits in (many, EDITS[:1]):
        check("llama", edits, settings({**FEW, "size_weight": None}, wordings=0, layers=(1,)))
    config = TrainingConfig()
    assert config.size_share(1) == config.size_share(4) == 2 * config.size_share(5) == 2 * config.size_share(16)
    assert config.size_share(16) == 2 * config.size_share(32)


def test_no_divergence_and_no_size() -> None:
    check("llama", EDITS, settings({**FEW, "drift_weight": 0, "size_weight": 0}))


def test_trained_until_all_is_right_and_scaled_down() -> None:
    """Before the steps are used up. A tiny model is sure of nothing: its loss stays high."""
    weights = {"size_weight": 4e-6, "drift_weight": 0.1}
    training = {"learning_rate": 1.0, "max_steps": 30, "stop_loss": 4.5, **weights}
    edits = EditSet([Edit("Who wrote it?", "Nobody did."), Edit("Where?", "In France.")])
    expected = check("llama", edits, settings(training, wordings=0, rank=16), talks=TALKS[:1], alike=(), earlier=())
    assert expected.right == [True, True] and expected.steps < 30
    assert expected.scale < 1


# ---- a start ---------------------------------------------------------------------------------------------------


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def random_start(names: Sequence[str], rank: int = 2) -> dict[str, tuple[Tensor, Tensor]]:
    view = EditableModel.of(tiny_model())
    linears = {linear.name: linear for layer in range(view.n_layers) for linear in view.block_linears(layer)}
    return {name: (0.02 * random(linears[name].d_out, rank), random(rank, linears[name].d_in)) for name in names}


DOWN = "model.layers.{}.mlp.down_proj"


def test_from_an_update() -> None:
    check("llama", EDITS, settings(), start=random_start([DOWN.format(1), DOWN.format(2)]))


def test_from_an_update_of_other_layers_and_linears() -> None:
    """All of them are trained on, as are the chosen layers."""
    names = [DOWN.format(2), "model.layers.0.self_attn.q_proj", "model.layers.2.mlp.up_proj", DOWN.format(3)]
    expected = check("llama", EDITS, settings(), start=random_start(names))
    assert list(expected.dense) == [
        "model.layers.0.self_attn.q_proj",
        DOWN.format(1),
        DOWN.format(2),
        "model.layers.2.mlp.up_proj",
        DOWN.format(3),
    ]


def test_from_an_update_of_more_than_the_rank() -> None:
    check("llama", EDITS, settings(rank=3, layers=(1,)), start=random_start([DOWN.format(1)], 5))


@pytest.mark.parametrize("rank", [1, 6, 100])
def test_without_training_an_update_comes_out_as_it_went_in(rank: int) -> None:
    start = random_start([DOWN.format(1)], 4)
    training = {"learning_rate": 1e-30, "max_steps": 1, "shrink": False}
    found = check("llama", EDITS, settings(training, rank=rank, layers=(1,), wordings=0), start=start).dense
    B, A = start[DOWN.format(1)]
    assert (found[DOWN.format(1)] - B @ A).abs().max() < 1e-9


# ---- few columns -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_of_few_columns(family: str) -> None:
    expected = check(family, EDITS, settings(columns=5))
    assert all(int((dense != 0).any(0).sum()) == 5 for dense in expected.dense.values())


def test_of_few_columns_with_few_keys() -> None:
    edits = EditSet([Edit(prompt="a", target="fox")])
    check("llama", edits, settings(format="plain", wordings=0, columns=3))


def test_of_few_columns_from_an_update_of_some_of_them() -> None:
    name = DOWN.format(1)
    B, A = random_start([name], 2)[name]
    there = [7, 2]
    A = torch.zeros_like(A)
    A[torch.arange(2), there] = 1
    expected = check("llama", EDITS, settings(columns=5, layers=(1,)), start={name: (B, A)})
    changed = (expected.dense[name] != 0).any(0).nonzero()[:, 0].tolist()
    assert len(changed) == 5 and set(there) < set(changed)
