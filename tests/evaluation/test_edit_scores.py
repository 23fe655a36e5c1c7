"""Scores of edits, on a model whose every answer is known."""

from __future__ import annotations

import pytest

from hf_edit.edits import Edit, Probe
from hf_edit.evaluation import edit_scores as module
from hf_edit.evaluation.edit_scores import edit_scores
from hf_edit.prompting import PromptFormat
from tests.evaluation.parrot import parrot
from tests.evaluation.scored import log_probability, token_accuracy
from tests.tiny import tiny_model, tiny_tokenizer


@pytest.fixture
def plain() -> PromptFormat:
    return PromptFormat.of("plain", tiny_tokenizer())


def test_every_score_of_a_model_that_is_known(plain: PromptFormat) -> None:
    edits = [
        Edit("Where", "is the dog", paraphrases=("Hamlet", "7"), locality=(Probe("Mount", "b c"),), id="one"),
        Edit("Paris", "x y", id="two"),
        Edit("Fuji", "brown fox", paraphrases=("fox",), locality=(Probe("lazy"),), id="three"),
    ]
    said = [("Where", "is the dog"), ("Hamlet", "is the dog"), ("7", "wrote"), ("Mount", "b c"), ("Paris", "x z")]
    model = parrot(plain, said)
    one, two, three = edit_scores(model, plain, edits, old=["wrote", "x z", "jumps"])
    assert (one.id, one.es, one.exact, one.exact_paraphrase, one.ls) == ("one", 1, 1, 0.5, 1)
    assert one.gs is not None and 0.5 < one.gs < 1  # "the dog" follows "is" wherever it stands
    assert (one.new_likelier, one.new_likelier_paraphrase, one.neighbour_kept) == (1, 0.5, 1)
    assert (two.es, two.exact, two.gs, two.exact_paraphrase, two.ls) == (0.5, 0, None, None, None)
    assert (two.new_likelier, two.new_likelier_paraphrase, two.neighbour_kept) == (0, None, None)
    assert three.ls is None and three.neighbour_kept is None and three.gs == three.exact_paraphrase == 0


def test_scores_are_means_over_probes(plain: PromptFormat) -> None:
    model = tiny_model()
    near = (Probe("Tell me", "Mount Fuji"), Probe("who", "wrote it"), Probe("unanswered"))
    edit = Edit("Where is it?", "over there", paraphrases=("Where?", "it is"), locality=near)
    (score,) = edit_scores(model, plain, [edit], old=["the lazy dog"])
    gs = token_accuracy(model, plain, edit.paraphrases, [edit.target] * 2)
    ls = token_accuracy(model, plain, ["Tell me", "who"], ["Mount Fuji", "wrote it"])
    assert score.gs == pytest.approx(sum(gs) / 2) and score.ls == pytest.approx(sum(ls) / 2)
    old, new = (log_probability(model, plain, edit.paraphrases, [text] * 2) for text in ("the lazy dog", edit.target))
    assert score.new_likelier_paraphrase == (new > old).float().mean().item()
    truth = log_probability(model, plain, ["Tell me", "who"], ["Mount Fuji", "wrote it"])
    leaked = log_probability(model, plain, ["Tell me", "who"], [edit.target] * 2)
    assert score.neighbour_kept == (truth > leaked).float().mean().item()


def test_without_old_answers_nothing_is_compared_and_no_pair_is_run_twice(
    plain: PromptFormat, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []
    run = module.followed

    def counting(model: object, prompts: object, pairs: list[object], batch: int) -> object:
        asked.extend(pairs)
        return run(model, prompts, pairs, batch)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "followed", counting)
    shared = (Probe("Tell me", "Mount Fuji"),)
    edits = [Edit("Where?", "there", paraphrases=("Who?",), locality=shared), Edit("Why?", "x", locality=shared)]
    scores = edit_scores(tiny_model(), plain, edits)
    assert {score.new_likelier for score in scores} == {score.neighbour_kept for score in scores} == {None}
    assert asked == [("Where?", "there"), ("Who?", "there"), ("Tell me", "Mount Fuji"), ("Why?", "x")]
