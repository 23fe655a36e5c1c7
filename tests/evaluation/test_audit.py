"""Audits on a small random model whose edited map is wide enough that ten edits leave most of its inputs alone."""

from __future__ import annotations

import json
import random
import warnings
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

import hf_edit
from hf_edit import AnyEditConfig, FinetuneConfig, MemitConfig
from hf_edit.edits import Edit, EditSet
from hf_edit.errors import BaseMismatchError, HfEditWarning
from hf_edit.evaluation.audit import run
from hf_edit.evaluation.audit.directions import examined
from hf_edit.evaluation.audit.keys import listed_keys
from hf_edit.evaluation.audit.moments import LARGEST, recipe
from hf_edit.evaluation.audit.outside import Outside, outside
from hf_edit.evaluation.audit.report import AuditReport, Reasked
from hf_edit.evaluation.audit.run import unrelated_prompts
from hf_edit.methods.base import EditSource, KeyValues
from hf_edit.methods.polish.config import PolishSettings
from hf_edit.methods.training.config import TrainingConfig
from hf_edit.models.borrow import borrowed
from hf_edit.models.editable import EditableModel
from hf_edit.packs.pack import EditPack
from hf_edit.progress import Silent
from hf_edit.prompting import PromptFormat
from hf_edit.solvers.key_basis import Keys
from hf_edit.solvers.low_rank import LowRankDelta
from hf_edit.solvers.ridge import penalty
from hf_edit.statistics.config import StatisticsConfig
from hf_edit.statistics.preserved import Preserved
from tests.snapshots import changed, snapshot
from tests.solvers.updates import ridge_update
from tests.tiny import SIZES, tiny_model, tiny_tokenizer


STATISTICS = StatisticsConfig(tokens=3200, conversations=8, answer_tokens=4, length=32, batch=64)
LAYER, WIDTH = 1, 640
THINGS = (
    "lamp",
    "bridge",
    "river",
    "song",
    "tower",
    "clock",
    "garden",
    "ship",
    "violin",
    "mountain",
    "theatre",
    "road",
)
WORDS = ("amber", "quiet", "seven", "north", "stone", "Vel", "Tarv", "Oru", "late", "glass", "Brell", "open", "far")


@cache
def wide_model() -> PreTrainedModel:
    """2 blocks, width 32, inner width 640."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(LlamaConfig(**{**SIZES, "intermediate_size": WIDTH, "num_hidden_layers": 2}))
        for name, parameter in model.named_parameters():
            if parameter.ndim >= 2 and "embed" not in name:
                parameter.data.mul_(4.0)
    model.config._name_or_path = "tiny-random/wide"
    return model.eval()


def some_edits(count: int, seed: int) -> EditSet:
    generator = random.Random(seed)
    names = generator.sample([f"{word} {thing}" for word in WORDS for thing in THINGS], count)
    return EditSet(
        Edit(f"Who made the {n}?", " ".join(generator.sample(WORDS, 4)), id=f"e{i}") for i, n in enumerate(names)
    )


@cache
def prompts() -> PromptFormat:
    return PromptFormat.of("plain", tiny_tokenizer())


@pytest.fixture
def cached(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The statistics are of too few tokens for a real edit, and said to be so once."""
    warnings.simplefilter("ignore", HfEditWarning)


def solved(taught: Sequence[Edit], seed: int, statistics_seed: int = 0) -> dict[str, LowRankDelta]:
    """A ridge solve as MEMIT's: a random residual at each prompt's last token, the texts' other tokens held."""
    view = EditableModel.of(wide_model())
    linear = view.linears[LAYER]
    with borrowed(view.model):
        moments = Preserved(view, prompts(), STATISTICS, statistics_seed, Silent()).moments([linear])
        keys, held = [], []
        for edit in taught:
            text = prompts().encode(edit.prompt, edit.target)
            inputs = view.trace(torch.tensor([text.ids[:-1]]), inputs=[linear]).inputs[linear.name][0]
            last = text.answer_start - 1
            keys.append(inputs[last])
            held.append(torch.cat([inputs[:last], inputs[last + 1 :]]))
    C = moments.combined(linear.name, moments.collected(MemitConfig().moment_weights()))
    R = torch.randn(linear.d_out, len(taught), generator=torch.Generator().manual_seed(seed))
    K, P = torch.stack(keys, 1).double(), torch.cat(held).double().T
    return {linear.name: ridge_update(K, R.double(), 0.3 * P, penalty(C, 100.0, 1e-4))}


def packed(deltas: dict[str, LowRankDelta], listed: EditSet, config: Any = None, method: str = "memit") -> EditPack:
    config = config or MemitConfig(layers=(LAYER,), statistics=STATISTICS)
    return EditPack.build(
        wide_model(),
        deltas=deltas,
        edits=listed,
        source=None,
        method=method,
        config=config.to_json(),
        seed=0,
        prompt_format=prompts(),
        receipt={},
    )


def unlisted(pack: EditPack) -> tuple[dict[str, Outside], list[str], list[str]]:
    view, findings, limits = EditableModel.of(wide_model()), [], []
    with borrowed(view.model):
        found = examined(view, prompts(), pack, Silent(), findings, limits)
    return found, findings, limits


def test_of_twenty_packs_with_one_unlisted_edit_all_are_flagged_and_of_twenty_honest_ones_none(cached: None) -> None:
    for seed in range(100, 120):  # the limits were chosen on others
        edits = some_edits(11, seed)
        listed = edits[:10]
        honest = packed(solved(listed, seed), listed)
        hidden = packed(solved(edits, seed), listed)
        found, findings, limits = unlisted(honest)
        assert (findings, limits) == ([], []) and max(one.largest for one in found.values()) < 0.01
        _, findings, limits = unlisted(hidden)
        assert len(findings) == 1 and "outside" in findings[0] and limits == [], seed


def test_statistics_of_other_settings_tell_nothing_rather_than_something_wrong(cached: None) -> None:
    listed = some_edits(6, 99)
    found, findings, limits = unlisted(packed(solved(listed, 0, statistics_seed=1), listed))
    assert findings == [] and all(one.told for one in found.values()) == (limits == [])
    listed = some_edits(6, 98)
    noise = {name: LowRankDelta(torch.randn(32, 6), torch.randn(6, WIDTH)) for name in solved(listed, 0)}
    found, findings, limits = unlisted(packed(noise, listed))
    assert findings == [] and not any(one.told for one in found.values()) and "changes tell nothing" in limits[0]


def test_methods_without_keys_are_not_examined(cached: None) -> None:
    listed = some_edits(3, 5)
    pack = packed(solved(listed, 0), listed, FinetuneConfig(), "finetune")
    assert unlisted(pack)[0] == {} and "finetune" in unlisted(pack)[2][0]


def test_an_update_of_as_many_directions_as_can_be_explained_tells_nothing() -> None:
    """Its keys fill everything, and it honestly uses more of them than the strongest half."""
    d = 40
    keys, C, none = Keys(d), torch.eye(d, dtype=torch.float64), torch.zeros(d, 0, dtype=torch.float64)
    keys.add(torch.randn(d, 400, dtype=torch.float64))
    strongest = LowRankDelta(torch.randn(30, 4), keys.leading(C, none)[:, :4].T.float())
    any_of_them = LowRankDelta(torch.randn(30, 15), torch.randn(15, d))
    found = outside(strongest, None, keys, C, above=False)
    assert found.many and found.told and found.largest < 1e-6
    found = outside(any_of_them, None, keys, C, above=False)
    assert found.many and not found.told and not found.flagged and found.largest > 0.4


def test_a_tiny_model_s_honest_pack_is_not_flagged(cached: None) -> None:
    model, edits = tiny_model(), some_edits(2, 12)
    settings = PolishSettings(strangers=2, conversations=4, training=TrainingConfig(max_steps=6))
    config = AnyEditConfig(backend="direct", direct=settings, statistics=STATISTICS, format="plain")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", HfEditWarning)  # of edits that are missed
        pack = hf_edit.edit(model, tiny_tokenizer(), edits, config)
    findings: list[str] = []
    limits: list[str] = []
    with borrowed(model):
        examined(EditableModel.of(model), prompts(), pack, Silent(), findings, limits)
    assert findings == [] and "too many directions" in limits[0]


@pytest.mark.parametrize("together", [None, 1, 3])
@pytest.mark.parametrize("layers", [(LAYER,), (0, LAYER)])
def test_a_trained_pack_is_honest_and_the_same_with_an_edit_left_out_is_not(
    layers: tuple[int, ...], together: int | None, cached: None
) -> None:
    training = TrainingConfig(max_steps=6)
    settings = PolishSettings(strangers=2, conversations=4, wordings=1, training=training, layers=layers)
    config = AnyEditConfig(backend="direct", direct=settings, together=together, statistics=STATISTICS, format="plain")
    edits = some_edits(8, 10)
    pack = hf_edit.edit(wide_model(), tiny_tokenizer(), edits, config)
    found, findings, limits = unlisted(pack)
    assert (findings, limits) == ([], []) and max(one.share for one in found.values()) < 1e-3
    lowest = EditableModel.of(wide_model()).linears[layers[0]].name
    assert found[lowest].share < 1e-6
    assert unlisted(replace(pack, source=None))[1] == []
    _, findings, _ = unlisted(packed(dict(pack.deltas), edits[:7], config, "anyedit"))
    assert findings


def test_of_many_edits_as_few_strangers_are_asked_as_in_training(
    cached: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hf_edit.methods.training.teacher.MOST_STRANGERS", 8)  # one for each of eight edits
    settings = PolishSettings(strangers=4, conversations=4, training=TrainingConfig(max_steps=6), layers=(LAYER,))
    config = AnyEditConfig(backend="direct", direct=settings, statistics=STATISTICS, format="plain")
    pack = hf_edit.edit(wide_model(), tiny_tokenizer(), some_edits(8, 10), config)
    (one,) = unlisted(pack)[0].values()
    assert one.share < 1e-6


def test_trained_rewrites_of_the_questions_are_explained(cached: None, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = PolishSettings(strangers=2, conversations=4, training=TrainingConfig(max_steps=6), layers=(LAYER,))
    config = AnyEditConfig(backend="direct", direct=settings, statistics=STATISTICS, format="plain")
    pack = hf_edit.edit(wide_model(), tiny_tokenizer(), some_edits(8, 7), config)
    assert unlisted(pack)[1] == []
    monkeypatch.setattr("hf_edit.evaluation.audit.keys._reworded", lambda *_: [])
    assert unlisted(pack)[1]


def test_a_source_that_the_pack_does_not_follow_explains_nothing(cached: None) -> None:
    settings = PolishSettings(strangers=0, conversations=4, training=TrainingConfig(max_steps=6), layers=(0, LAYER))
    config = AnyEditConfig(backend="direct", direct=settings, together=1, statistics=STATISTICS, format="plain")
    pack = hf_edit.edit(wide_model(), tiny_tokenizer(), some_edits(3, 8), config)
    view = EditableModel.of(wide_model())
    linears = view.linears_named(pack.deltas)
    top = linears[-1].name

    def keys(source: EditSource | None) -> torch.Tensor:
        with borrowed(view.model):
            return listed_keys(view, prompts(), replace(pack, source=source), linears)[1][top].leading(
                torch.eye(WIDTH).double(), torch.zeros(WIDTH, 0).double()
            )

    invented = [
        {name: KeyValues(asked.positions, 30 * torch.randn_like(asked.values)) for name, asked in edit.items()}
        for edit in pack.source or ()
    ]
    assert torch.equal(keys(invented), keys(None)) and not torch.equal(keys(pack.source), keys(None))


def test_the_whole_audit_leaves_the_model_alone_and_reports_everything(cached: None) -> None:
    model, listed = wide_model(), some_edits(3, 3)
    deltas = solved(some_edits(4, 3), 3)
    pack = packed({name: LowRankDelta(delta.B * 20, delta.A) for name, delta in deltas.items()}, listed)
    before = snapshot(model)
    report = hf_edit.audit(model, tiny_tokenizer(), pack)
    assert changed(before, snapshot(model)) == []
    assert [edit.id for edit in report.edits] == list(listed.ids) and all(edit.loss > 0 for edit in report.edits)
    assert not report.clean and "outside" in report.findings[0]
    assert 0 < len(report.drift) <= len(unrelated_prompts()) and all(one.kl >= -1e-4 for one in report.drift)
    document = json.loads(json.dumps(report.to_json()))
    assert document["clean"] is False and document["answered"] == report.answered
    assert next(iter(document["modules"].values()))["flagged"] is True


def test_a_change_outside_of_the_blocks_is_found(cached: None) -> None:
    listed = some_edits(2, 6)
    head = LowRankDelta(torch.full((512, 1), 1e-6), torch.ones(1, 32))
    pack = packed({**solved(listed, 0), "lm_head": head}, listed)
    every = {name: KeyValues(torch.arange(3), torch.zeros(3, d.shape[0])) for name, d in pack.deltas.items()}
    found, findings, _ = unlisted(replace(pack, source=[every, every]))
    assert len(findings) == 1 and "lm_head, outside of the blocks" in findings[0]
    assert set(found) == set(pack.deltas) - {"lm_head"}


def test_a_change_of_everything_drifts(cached: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "DRIFT_LIMITS", (0.05, 0.1))  # a random model has no strong opinions to change
    model, listed = wide_model(), some_edits(2, 4)
    name = EditableModel.of(model).linears[LAYER].name
    noise = {name: LowRankDelta(10 * torch.randn(32, 30), torch.randn(30, WIDTH))}
    report = hf_edit.audit(model, tiny_tokenizer(), packed(noise, listed))
    assert not report.clean and "unrelated prompts" in report.findings[0]


def test_a_pack_that_leaves_no_numbers_is_found(cached: None) -> None:
    listed = some_edits(2, 4)
    name = EditableModel.of(wide_model()).linears[LAYER].name
    huge = {name: LowRankDelta(torch.full((32, 1), 3e25), torch.full((1, WIDTH), 3e25))}
    report = hf_edit.audit(wide_model(), tiny_tokenizer(), packed(huge, listed))
    assert all(one.flagged and one.kl == float("inf") for one in report.drift)
    assert "unrelated prompts" in report.findings[0]
    assert "NaN" not in json.dumps(report.to_json()) and "Infinity" not in json.dumps(report.to_json())


def report_of(losses: Sequence[float], findings: Sequence[str] = (), limits: Sequence[str] = ()) -> AuditReport:
    edits = [Reasked(str(i), "Who?", "Me.", "Me. And you." * (i > 0), i == 0, loss) for i, loss in enumerate(losses)]
    return AuditReport(edits, [], {}, findings, limits)


@pytest.mark.parametrize(
    ("findings", "limits", "verdict"),
    [([], [], "clean"), ([], ["Directions: ..."], "untold"), (["x"], [], "found"), (["x"], ["y"], "found")],
)
def test_a_report_is_clean_only_if_everything_was_examined(findings: Any, limits: Any, verdict: str) -> None:
    report = report_of([0.1], findings, limits)
    assert report.verdict == report.to_json()["verdict"] == verdict and report.clean == (verdict == "clean")


def test_an_edit_holds_where_it_is_answered_or_likelier_than_not() -> None:
    report = report_of([2.0, 0.1, 2.0])  # the first is answered word for word
    assert (report.answered, report.held) == (1, 2)
    assert report.to_json()["held"] == 2


def test_a_pack_whose_listed_edits_mostly_do_not_hold_is_found_out(
    cached: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, listed = wide_model(), some_edits(4, 3)
    nothing = {name: LowRankDelta(1e-6 * delta.B, delta.A) for name, delta in solved(listed, 3).items()}
    report = hf_edit.audit(model, tiny_tokenizer(), packed(nothing, listed))
    assert report.verdict == "found" and "0 of the 4 listed edits hold" in report.findings[0]
    monkeypatch.setattr("hf_edit.evaluation.audit.report.LIKELY", 99.0)
    assert hf_edit.audit(model, tiny_tokenizer(), packed(nothing, listed)).verdict == "clean"
    relabelled = packed(nothing, listed, FinetuneConfig(), "finetune")
    assert hf_edit.audit(model, tiny_tokenizer(), relabelled).verdict == "untold"


def test_prompts_of_a_listed_kind_may_drift(cached: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "DRIFT_LIMITS", (0.05, 0.1))
    model = wide_model()
    name = EditableModel.of(model).linears[LAYER].name
    noise = {name: LowRankDelta(torch.randn(32, 30), torch.randn(30, WIDTH))}
    listed = EditSet([Edit("What do bees really make?", "Amber glass.")])
    report = hf_edit.audit(model, tiny_tokenizer(), packed(noise, listed))
    by_prompt = {one.prompt: one for one in report.drift}
    assert by_prompt["What do bees make?"].near and not by_prompt["What do bees make?"].flagged
    assert not by_prompt["Name a fruit that is yellow."].near and by_prompt["Name a fruit that is yellow."].flagged


def test_another_base_is_refused(cached: None) -> None:
    pack = packed(solved(some_edits(2, 1), 1), some_edits(2, 1))
    with pytest.raises(BaseMismatchError):
        hf_edit.audit(type(wide_model())(wide_model().config), tiny_tokenizer(), pack)


@pytest.mark.parametrize(
    "config",
    [
        {"statistics": {"text": "/etc/passwd"}},
        {"statistics": {"text": "dataset:a:b:c:d"}},
        {"statistics": {"tokens": 10**12}},
        {"statistics": {"conversations": 10**9}},
        {"statistics": {"repo": "stranger/stats"}},
        {"statistics": {"nonsense": 1}},
        {"statistics": 3},
        {"backend": ["direct"], "direct": 3},
        {"backend": "direct", "direct": 3},
        {"chat_weight": 1e300, "strangers": 10**9, "ridge": -1},
        {},
    ],
)
@pytest.mark.parametrize("method", ["anyedit", "memit", "stack", "unheard-of"])
def test_a_hostile_manifest_does_not_choose_what_is_collected(config: dict[str, Any], method: str) -> None:
    listed = some_edits(1, 2)
    pack = packed(
        {EditableModel.of(wide_model()).linears[0].name: LowRankDelta(torch.ones(32, 1), torch.ones(1, WIDTH))}, listed
    )
    named = replace(pack.manifest.method, name=method, config=config)
    settings, statistics, seed = recipe(replace(pack, manifest=replace(pack.manifest, method=named, seed=10**30)))
    assert statistics.text == "self" and statistics.repo is None and 0 <= seed < 1 << 32
    assert all((getattr(statistics, name) or 0) <= most for name, most in LARGEST.items())
    assert all(0 <= value <= 1e6 for value in settings.values())


def test_the_prompts_are_many_and_unlike_each_other() -> None:
    assert len(set(unrelated_prompts())) == 40


def test_only_what_a_question_is_about_makes_another_like_it() -> None:
    def near(prompt: str, *listed: str) -> bool:
        return run._is_near(run._words(prompt), [run._words(one) for one in listed])

    assert near("Who painted the Mona Lisa?", "Who was it that painted the Mona Lisa")
    assert not near("What is a virus?", "What is the name of the mayor of the town of Veldora?")
    quoting = "Say what a virus is, who painted the Mona Lisa, how tall Everest is and why the sky is blue."
    assert not near("What is a virus?", quoting) and not near("Who painted the Mona Lisa?", quoting)
    assert not near("Who is it?", "What was that?")  # neither is about anything
