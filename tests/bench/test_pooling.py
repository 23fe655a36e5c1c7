from __future__ import annotations

import dataclasses

import pytest

from hf_edit.bench.pooling import pooled
from hf_edit.edits import Edit, EditSet
from hf_edit.evaluation.figures import figure
from hf_edit.packs.evaluation import FIXED, FORCED, FREE, Evaluation, Figure, Generation, Metric


EDITS = EditSet([Edit("a?", "b"), Edit("c?", "d")])


def metric(name: str, before: Figure | None, after: Figure | None, statistic: str = "mean") -> Metric:
    return Metric(name, FREE if statistic == "mean" else FIXED, "It.", True, statistic, before, after)


def evaluation(*metrics: Metric, answer: str = "b") -> Evaluation:
    generations = (Generation("prompt", "a", "a?", (answer,), "", answer),)
    return Evaluation("0" * 64, metrics, generations, {"format": "plain"}, {"seed": 0}, {"base": 1.0, "edited": 2.5})


def test_one_evaluation_stays_as_it_is() -> None:
    one = evaluation(metric("reliability.exact", None, figure([1.0])))
    assert pooled([one], EDITS, 0) is one


def test_records_of_edits_are_put_together() -> None:
    first, second = (
        evaluation(metric("reliability.exact", figure([0.0]), figure([right])), answer=str(right))
        for right in (1.0, 0.0)
    )
    both = pooled([first, second], EDITS, 0)
    assert both["reliability.exact"].after == figure([1.0, 0.0])
    assert both["reliability.exact"].before == figure([0.0, 0.0])
    assert [one.after for one in both.generations] == ["1.0", "0.0"]
    assert (both.pack, both.protocol["packs"], both.protocol["edits"]["count"]) == (None, 2, 2)
    assert both.seconds == {"base": 2.0, "edited": 5.0}


def test_what_every_pack_is_asked_alike_counts_once_for_each_pack() -> None:
    texts = (figure([1.0, 3.0], "exp_mean"), figure([2.0, 4.0], "exp_mean"), figure([3.0, 5.0], "exp_mean"))
    parts = [evaluation(metric("perplexity.text", texts[0], after, "exp_mean")) for after in texts[1:]]
    found = pooled(parts, EDITS, 0)["perplexity.text"]
    assert found.before == figure([2.0, 2.0], "exp_mean") and found.before.low is None  # all packs found the same
    assert found.after == figure([3.0, 4.0], "exp_mean")
    assert found.after is not None and found.after.n == 2


def test_a_harmonic_mean_is_made_of_its_parts() -> None:
    def scored(efficacy: float, paraphrase: float, neighbourhood: float) -> Evaluation:
        names = {"efficacy": efficacy, "paraphrase": paraphrase, "neighbourhood": neighbourhood}
        rows = figure([[efficacy, paraphrase, neighbourhood]], "harmonic_mean")
        return evaluation(
            *(Metric(f"success.{n}", FORCED, "It.", True, "mean", None, figure([v])) for n, v in names.items()),
            Metric("success.score", FORCED, "It.", True, "harmonic_mean", None, rows),
        )

    found = pooled([scored(1.0, 0.5, 0.8), scored(1.0, 1.0, 0.4)], EDITS, 0)["success.score"]
    assert found.before is None
    assert found.after is not None
    assert found.after.value == pytest.approx(3 / (1 + 1 / 0.75 + 1 / 0.6), abs=1e-6)


def test_what_has_no_records_is_left_out() -> None:
    parts = [evaluation(metric("general.task.acc", None, Figure(0.5, None, None, 10)))] * 2
    assert pooled(parts, EDITS, 0).metrics == ()


def test_a_metric_that_the_first_pack_has_no_questions_for_is_kept() -> None:
    parts = [
        evaluation(metric("reliability.exact", None, figure([1.0]))),
        evaluation(metric("portability.right", None, figure([0.0])), metric("reliability.exact", None, figure([0.0]))),
    ]
    found = pooled(parts, EDITS, 0)
    assert [one.name for one in found.metrics] == ["reliability.exact", "portability.right"]
    assert found["portability.right"].after == figure([0.0])


def test_given_strangers_count_once_for_each_pack() -> None:
    parts = [
        dataclasses.replace(
            evaluation(metric("strangers.same", None, figure([1.0, right, 0.0]))), protocol={"strangers": "given"}
        )
        for right in (0.0, 1.0)
    ]
    assert pooled(parts, EDITS, 0)["strangers.same"].after == figure([1 / 3, 2 / 3])
    theirs = [dataclasses.replace(one, protocol={"strangers": "invented by the base"}) for one in parts]
    after = pooled(theirs, EDITS, 0)["strangers.same"].after
    assert after is not None and after.n == 6


def test_a_harmonic_mean_lacks_packs_that_lack_a_part() -> None:
    def scored(*parts: str) -> Evaluation:
        return evaluation(
            *(Metric(f"success.{n}", FORCED, "It.", True, "mean", None, figure([0.5])) for n in parts),
            Metric("success.score", FORCED, "It.", True, "harmonic_mean", None, None),
        )

    names = ("efficacy", "paraphrase", "neighbourhood")
    found = pooled([scored(*names), scored("efficacy", "neighbourhood")], EDITS, 0)["success.score"]
    assert found.after is not None and (found.after.value, found.after.n) == (0.5, 1)


def test_what_nothing_is_found_of_is_left_out() -> None:
    parts = {
        "efficacy": figure([1.0, 0.0]),
        "paraphrase": figure([1.0]),  # of which edit is not known
        "neighbourhood": figure([0.5, 0.5]),
    }
    score = figure([[1.0, 1.0, 0.5]], "harmonic_mean")
    one = evaluation(
        *(Metric(f"success.{name}", FORCED, "It.", True, "mean", None, part) for name, part in parts.items()),
        Metric("success.score", FORCED, "It.", True, "harmonic_mean", None, score),
    )
    found = pooled([one, one], EDITS, 0)
    assert [metric.name for metric in found.metrics] == [f"success.{name}" for name in parts]
    found.check()
