"""Causal tracing against plain forwards with plain hooks, and what is made of it."""

from __future__ import annotations

import dataclasses
import json
import math
from contextlib import ExitStack

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hf_edit.edits import Edit, EditSet, Message
from hf_edit.errors import ConfigError, InvalidEditError
from hf_edit.methods.locating import tracing
from hf_edit.methods.locating.effects import CLASSES, EditEffects, Effects, propose_layers, trace_effects
from hf_edit.models.editable import EditableModel
from hf_edit.progress import Silent
from hf_edit.prompting import PromptFormat
from tests.snapshots import changed, snapshot
from tests.tiny import FAMILIES, tiny_model, tiny_tokenizer


EDITS = EditSet(
    [
        Edit("Where does Mount Fuji lie, please?", "In Japan.", subject="Mount Fuji", id="fuji"),
        Edit("Who wrote Hamlet?", "Nobody.", id="hamlet"),
    ]
)


def traced(model: PreTrainedModel, edits: EditSet = EDITS, format: str = "chat", **options: object) -> Effects:
    prompts = PromptFormat.of(format, tiny_tokenizer())
    settings = {"samples": 2, "answer_tokens": 3, **options}
    return trace_effects(EditableModel.of(model), prompts, edits, Silent(), **settings)  # type: ignore[arg-type]


# ---- the plain procedure ----------------------------------------------------------------------------------------


def outputs(model: PreTrainedModel, ids: Tensor, modules: list[nn.Module]) -> list[Tensor]:
    kept: dict[int, Tensor] = {}
    with ExitStack() as stack:
        for index, module in enumerate(modules):

            def keep(_: nn.Module, __: object, output: object, index: int = index) -> None:
                kept[index] = (output[0] if isinstance(output, tuple) else output).reshape(ids.shape[1], -1)

            handle = module.register_forward_hook(keep)
            stack.callback(handle.remove)
        model(input_ids=ids, use_cache=False)
    return [kept[index] for index in range(len(modules))]


def score(
    model: PreTrainedModel,
    ids: Tensor,
    labels: list[int],
    noise: Tensor,
    replaced: dict[nn.Module, tuple[int, Tensor]],
) -> float:
    def disturb(_: nn.Module, __: object, output: Tensor) -> Tensor:
        return output + noise

    def put_back(position: int, value: Tensor):  # type: ignore[no-untyped-def]
        def hook(_: nn.Module, __: object, output: object) -> object:
            own = output[0] if isinstance(output, tuple) else output
            changed = own.clone()
            changed.view(ids.shape[1], -1)[position] = value
            return (changed, *output[1:]) if isinstance(output, tuple) else changed

        return hook

    with ExitStack() as stack:
        stack.callback(model.get_input_embeddings().register_forward_hook(disturb).remove)
        for module, (position, value) in replaced.items():
            stack.callback(module.register_forward_hook(put_back(position, value)).remove)
        logits = model(input_ids=ids, use_cache=False).logits[0, -len(labels) :]
    probabilities = logits.softmax(dim=-1)[torch.arange(len(labels)), labels]
    return float(probabilities.prod() ** (1 / len(labels)))


@torch.no_grad()
def plain_effects(
    view: EditableModel, case: tracing.Case, window: int, scale: float, samples: int, seed: int
) -> tuple[float, float, Tensor]:
    model = view.model
    ids, labels = torch.tensor([case.ids]), list(case.answer_ids)
    mlps = [linear.module for linear in view.linears]
    clean_mlp, clean_stream = outputs(model, ids, mlps), outputs(model, ids, view.blocks)
    width = model.get_input_embeddings().weight.shape[1]
    positions = [*range(case.first, case.last + 1), *(t for t in case.repeats if t < ids.shape[1])]
    draws = scale * torch.randn(samples, len(positions), width, generator=torch.Generator().manual_seed(seed))
    noises = torch.zeros(samples, ids.shape[1], width, dtype=model.dtype)
    noises[:, positions] = draws.to(model.dtype)

    corrupted = [score(model, ids, labels, noise, {}) for noise in noises]
    effects = torch.zeros(len(case.prompt_ids) - case.first, view.n_layers, dtype=torch.float64)
    for t in range(len(effects)):
        at = case.first + t
        for layer in range(view.n_layers):
            if window:
                low = layer - window // 2
                back = {mlps[i]: (at, clean_mlp[i][at]) for i in range(low, low + window) if 0 <= i < view.n_layers}
            else:
                back = {view.blocks[layer]: (at, clean_stream[layer][at])}
            gains = [score(model, ids, labels, n, back) - c for n, c in zip(noises, corrupted, strict=True)]
            effects[t, layer] = sum(gains) / samples
    return score(model, ids, labels, noises[0] * 0, {}), sum(corrupted) / samples, effects


@pytest.mark.parametrize(("restored", "window"), [("mlp", 1), ("mlp", 2), ("mlp", 3), ("stream", None)])
def test_it_equals_the_plain_procedure(restored: str, window: int | None) -> None:
    check("llama", restored, window)


@pytest.mark.parametrize("family", [f for f in FAMILIES if f != "llama"])
def test_every_family(family: str) -> None:
    check(family, "mlp", 3)


@torch.no_grad()
def check(family: str, restored: str, window: int | None, edits: EditSet = EDITS, format: str = "chat") -> None:
    model = tiny_model(family, dtype=torch.float64)
    view, prompts = EditableModel.of(model), PromptFormat.of(format, tiny_tokenizer())
    found = traced(model, edits, format, restored=restored, window=window, seed=5, noise=2.0)
    cases = [tracing.case_of(view, prompts, edit, 3) for edit in edits]
    disturbed = torch.tensor([c.ids[p] for c in cases for p in c.disturbed])
    scale = 2.0 * float(model.get_input_embeddings()(disturbed).float().std())
    assert len(found.edits) == len(edits)
    for edit, case in zip(found.edits, cases, strict=True):
        clean, corrupted, effects = plain_effects(view, case, window or 0, scale, 2, 5)
        tolerance = 1e-6 if family in ("gemma2", "gptj") else 1e-10  # attention that rounds to fp32
        assert edit.clean == pytest.approx(clean, abs=tolerance)
        assert edit.corrupted == pytest.approx(corrupted, abs=tolerance)
        assert abs(edit.clean - edit.corrupted) > 1e-6
        assert edit.effects.shape == effects.shape == (len(edit.tokens), 4)
        assert (edit.effects - effects).abs().max() <= tolerance
        assert effects.abs().max() > 1e-6


def test_a_prompt_that_begins_with_the_subject() -> None:
    """Then nothing runs before the noise."""
    check("llama", "mlp", 2, EditSet([Edit("Paris is in", "Spain.", subject="Paris")]), "plain")


def test_batches_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = traced(tiny_model(dtype=torch.float64))
    monkeypatch.setattr(tracing, "BATCH_TOKENS", 1)
    for one, other in zip(whole.edits, traced(tiny_model(dtype=torch.float64)).edits, strict=True):
        assert (one.effects - other.effects).abs().max() <= 1e-9


def test_the_stream_after_the_last_noisy_token_brings_the_whole_answer_back() -> None:
    """Everything later is computed from the states of the last prompt token and those of the answer."""
    edits = EditSet([Edit("The capital of France", "Rome.", subject="France")])
    (found,) = traced(tiny_model(dtype=torch.float64), edits, "plain", restored="stream", answer_tokens=1).edits
    assert found.classes == (0, 1, 2) or found.classes == (2,) or found.classes[-1] == 2
    assert found.effects[-1, -1].item() == pytest.approx(found.clean - found.corrupted, abs=1e-7)


# ---- what is traced ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["byte_level", "sentencepiece"])
@pytest.mark.parametrize("format", ["chat", "plain", "qa"])
def test_noise_is_put_on_the_subjects_tokens(kind: str, format: str) -> None:
    view, prompts = EditableModel.of(tiny_model()), PromptFormat.of(format, tiny_tokenizer(kind))
    case = tracing.case_of(view, prompts, EDITS[0], 3)
    assert case.subject == "Mount Fuji"
    assert "Mount Fuji" in prompts.decode(case.prompt_ids[case.first : case.last + 1])
    for first, last in ((case.first + 1, case.last), (case.first, case.last - 1)):
        assert "Mount Fuji" not in prompts.decode(case.prompt_ids[first : last + 1])
    whole = tracing.case_of(view, prompts, EDITS[1], 3)
    assert whole.subject is None
    assert prompts.decode(whole.prompt_ids[whole.first : whole.last + 1]).strip() == "Who wrote Hamlet?"


def test_a_subject_that_is_not_in_the_prompt() -> None:
    view, prompts = EditableModel.of(tiny_model()), PromptFormat.of("chat", tiny_tokenizer())
    case = tracing.case_of(view, prompts, Edit("Who wrote it?", "Me.", subject="Hamlet"), 3)
    assert case.subject is None


def test_the_answer_is_the_bases_own_and_ends_with_its_turn() -> None:
    model = tiny_model()
    prompts = PromptFormat.of("plain", tiny_tokenizer())
    row = torch.tensor([prompts.prompt_ids("Who?")])
    likeliest = int(model(row).logits[0, -1].argmax())
    case = tracing.case_of(EditableModel.of(model), prompts, Edit("Who?", "Me."), 4)
    assert case.answer_ids[0] == likeliest and len(case.answer_ids) == 4
    object.__setattr__(prompts, "end_id", case.answer_ids[1])  # as if the model ended its turn there
    object.__setattr__(prompts, "stop_ids", frozenset({case.answer_ids[1]}))
    again = tracing.case_of(EditableModel.of(model), prompts, Edit("Who?", "Me."), 4)
    ended = case.answer_ids.index(case.answer_ids[1])
    assert again.answer_ids == case.answer_ids[: ended + 1]


def test_the_subject_is_disturbed_where_the_answer_says_it_again() -> None:
    assert tracing._holding(["The", " cap", "ital", " of", " Fr", "ance", " is", " Paris"], "France") == [4, 5]
    assert tracing._holding(["a", "", "b"], "ab") == [0, 1, 2]  # half a character
    assert tracing._holding(["x"], "ab") == []
    case = tracing.Case(EDITS[0], "Mount Fuji", (9, 9, 9, 9), (7, 7, 7), 1, 2, (5, 6))
    assert case.ids == (9, 9, 9, 9, 7, 7)
    assert case.disturbed == [1, 2, 5]  # the last token of the answer is predicted, not read


def test_classes_of_tokens() -> None:
    fuji, hamlet = traced(tiny_model()).edits
    names = [CLASSES[index] for index in fuji.classes]
    assert names[0] == "first subject token" and names[-1] == "last token"
    assert names.count("last subject token") == 1 and names[-2] == "later tokens"
    last = names.index("last subject token")
    assert set(names[1:last]) <= {"middle subject tokens"}
    assert "".join(fuji.tokens[: last + 1]).strip() == "Mount Fuji"
    assert hamlet.subject is None and "".join(hamlet.tokens).strip().startswith("Who wrote Hamlet?")


def test_an_edits_figures_do_not_depend_on_the_others_but_for_the_scale() -> None:
    fuji = traced(tiny_model(), EDITS[:1])
    again = traced(tiny_model(), EDITS[:1])
    assert torch.equal(fuji.edits[0].effects, again.edits[0].effects)
    other = traced(tiny_model(), EDITS[:1], seed=1)
    assert not torch.equal(fuji.edits[0].effects, other.edits[0].effects)


def test_the_model_is_left_as_it_was() -> None:
    model = tiny_model().train()
    before = snapshot(model)
    traced(model)
    assert changed(before, snapshot(model)) == []


def test_the_default_window_is_a_fifth_of_the_depth() -> None:
    effects = traced(tiny_model(), EDITS[:1])
    assert (effects.restored, effects.window) == ("mlp", 1)
    assert traced(tiny_model(), EDITS[:1], restored="stream").window == 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"restored": "attention"}, "'attention' cannot be restored"),
        ({"restored": "stream", "window": 3}, "window = 3 has no meaning"),
        ({"window": 0}, "window = 0 is below 1"),
        ({"samples": 0}, "samples = 0 is below 1"),
        ({"answer_tokens": 0}, "answer_tokens = 0 is below 1"),
        ({"noise": 0.0}, "noise = 0 is not above 0"),
        ({"noise": math.nan}, "noise = nan is not above 0"),
    ],
)
def test_settings_out_of_range(options: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        traced(tiny_model(), **options)


def test_a_prompt_that_leaves_no_room() -> None:
    with pytest.raises(InvalidEditError, match="context holds 256"):
        traced(tiny_model(), EditSet([Edit("Why " * 300, "So.")]))


def test_a_chat() -> None:
    chat = (Message("user", "Is Fuji high?"), Message("assistant", "Yes."), Message("user", "Where is Fuji?"))
    (found,) = traced(tiny_model(), EditSet([Edit(chat, "Here.", subject="Fuji")])).edits
    assert "".join(found.tokens).strip().startswith("Fuji?")  # its last occurrence


# ---- what is made of it ------------------------------------------------------------------------------------------


def effects_of(*rows: tuple[list[int], list[list[float]]], subject: str | None = "x") -> Effects:
    edits = tuple(
        EditEffects("e", subject, "yes", ("t",) * len(classes), tuple(classes), 0.5, 0.1, torch.tensor(values))
        for classes, values in rows
    )
    return Effects("mlp", 3, edits)


TWO = effects_of(
    ([0, 1, 1, 2, 4], [[1.0, 0, 0], [2, 0, 0], [4, 0, 6], [0, 1, 3], [0, 0, 9]]),
    ([2, 3, 4], [[0, 5.0, 1], [1, 1, 1], [0, 0, 3]]),
)


def test_the_mean_is_over_tokens_then_over_edits() -> None:
    expected = [[1.0, 0, 0], [3, 0, 3], [0, 3, 2], [1, 1, 1], [0, 0, 6]]
    torch.testing.assert_close(TWO.mean, torch.tensor(expected))


def test_a_class_without_tokens() -> None:
    effects = effects_of(([2, 4], [[0.0, 1], [1, 0]]))
    assert effects.mean.isnan().all(dim=1).tolist() == [True, True, False, True, False]
    document = json.loads(json.dumps(effects.to_json(), allow_nan=False))
    assert document["mean"]["later tokens"] is None and document["mean"]["last token"] == [1, 0]
    assert document["edits"][0]["classes"] == ["last subject token", "last token"]


def test_the_layers_of_the_largest_summed_effect_are_proposed() -> None:
    assert propose_layers(TWO, 1) == (1,)
    assert propose_layers(TWO, 2) == (1, 2)
    assert propose_layers(TWO, 3) == (0, 1, 2)
    assert propose_layers(TWO, 1, "last token") == (2,)
    assert propose_layers(effects_of(([2, 4], [[1.0, 1, 0], [0, 0, 0]])), 1) == (0,)  # equal: the lowest


def test_without_a_subject_the_last_token_decides() -> None:
    rows = [([2, 4], [[1.0, 0], [0, 1]])]
    assert propose_layers(effects_of(*rows, subject=None), 1) == (1,)
    mixed = effects_of(*rows, *rows)
    some = dataclasses.replace(mixed, edits=(mixed.edits[0], dataclasses.replace(mixed.edits[1], subject=None)))
    assert propose_layers(some, 1) == (1,)
    assert propose_layers(effects_of(([2], [[1.0, 0]]), subject=None), 1) == (0,)  # the prompt ends with the question


def test_what_cannot_be_proposed() -> None:
    with pytest.raises(ConfigError, match="4 layers were asked for"):
        propose_layers(TWO, 4)
    with pytest.raises(ConfigError, match="0 layers"):
        propose_layers(TWO, 0)
    with pytest.raises(ConfigError, match="no class of tokens 'verb'"):
        propose_layers(TWO, 1, "verb")
    with pytest.raises(ConfigError, match="No token traced is of the class 'last token'"):
        propose_layers(effects_of(([2], [[1.0, 0]])), 1, "last token")
