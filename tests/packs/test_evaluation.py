"""Figures in a pack: bound to its factors, on its card, and refused where they are not what they say."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from hf_edit.errors import PackError
from hf_edit.packs.card import model_card, shown_figure
from hf_edit.packs.contents import EVALUATION
from hf_edit.packs.evaluation import Evaluation, Figure, factors_digest
from hf_edit.packs.pack import EditPack
from hf_edit.solvers.low_rank import LowRankDelta
from tests.packs.make import EDITS, make_pack, measured
from tests.tiny import tiny_model


def test_saved_and_read_back_without_the_clock(tmp_path: Path) -> None:
    pack = measured(make_pack(tiny_model()))
    pack.save_pretrained(tmp_path / "one")
    read = EditPack.from_pretrained(tmp_path / "one")
    assert read.evaluation == pack.evaluation and read.evaluation is not None and not read.evaluation.seconds
    assert EVALUATION in read.manifest.files
    other = replace(pack.evaluation, seconds={"base": 9.0})  # type: ignore[type-var]
    pack.with_evaluation(other).save_pretrained(tmp_path / "two")
    one, two = ({p.name: p.read_bytes() for p in (tmp_path / name).iterdir()} for name in ("one", "two"))
    assert one == two


def test_figures_stay_with_the_factors_that_they_were_measured_on(tmp_path: Path) -> None:
    pack = measured(make_pack(tiny_model()))
    for layout, kept in (("compact", True), ("bf16", False)):
        pack.save_pretrained(tmp_path / layout, layout=layout)
        assert (EditPack.from_pretrained(tmp_path / layout).evaluation is not None) is kept
        assert ("## Measured" in (tmp_path / layout / "README.md").read_text("utf-8")) is kept
    rounded = measured(EditPack.from_pretrained(tmp_path / "bf16"))
    rounded.save_pretrained(tmp_path / "bf16", layout="bf16")  # nothing is lost a second time
    assert EditPack.from_pretrained(tmp_path / "bf16").evaluation == rounded.evaluation


def test_figures_of_another_pack_are_refused() -> None:
    evaluation = measured(make_pack(tiny_model(), seed=1)).evaluation
    assert evaluation is not None
    with pytest.raises(PackError, match="other factors"):
        make_pack(tiny_model(), seed=2).with_evaluation(evaluation)
    with pytest.raises(PackError, match="other factors"):
        make_pack(tiny_model(), seed=1).with_evaluation(replace(evaluation, pack=None))


def test_the_digest_sees_every_number_and_name() -> None:
    deltas = dict(make_pack(tiny_model()).deltas)
    digest = factors_digest(deltas)
    assert factors_digest(dict(reversed(deltas.items()))) == digest
    name, delta = next(iter(deltas.items()))
    nudged = delta.B.clone()
    nudged[0, 0] += 1e-6
    assert factors_digest({**deltas, name: LowRankDelta(nudged, delta.A)}) != digest
    assert factors_digest({f"{name}x" if n == name else n: d for n, d in deltas.items()}) != digest


def test_one_metric_by_its_name() -> None:
    evaluation = measured(make_pack(tiny_model())).evaluation
    assert evaluation is not None
    assert evaluation["reliability.exact"].figure.value == 0.5
    assert evaluation["unrelated.kl"].before is None
    with pytest.raises(KeyError):
        _ = evaluation["reliability.nonsense"]


@pytest.mark.parametrize(
    ("version", "message"),
    [(None, "not a positive integer"), (True, "not a positive"), (0, "not a positive"), (2, "up to version 1")],
)
def test_other_formats_are_refused(version: object, message: str) -> None:
    evaluation = measured(make_pack(tiny_model())).evaluation
    assert evaluation is not None
    with pytest.raises(PackError, match=message):
        Evaluation.from_json({**evaluation.to_json(), "format_version": version})


def test_the_hub_reads_the_figures_off_the_card(tmp_path: Path) -> None:
    pack = measured(make_pack(tiny_model()))
    (tmp_path / "README.md").write_bytes(model_card(pack.manifest, EDITS, pack.deltas, pack.evaluation))
    data = ModelCard.load(tmp_path / "README.md").data
    assert data.model_name == "Edit pack of 2 edits"
    found = {result.metric_type: result.metric_value for result in data.eval_results}
    assert found == {"reliability.exact": 0.5, "unrelated.kl": 0.01}
    assert {result.metric_name for result in data.eval_results} == {
        "reliability.exact (free generation)",
        "unrelated.kl (fixed text)",
    }


def test_the_card_shows_intervals_and_protocol() -> None:
    pack = measured(make_pack(tiny_model()))
    text = model_card(pack.manifest, EDITS, pack.deltas, pack.evaluation).decode()
    assert (
        "| `reliability.exact` | 0 [0, 0.657] | 0.5 [0.094, 0.905] | 2 | free generation | "
        "Share of answers \\| word for word. |" in text
    )
    assert "| `unrelated.kl` |  | 0.01 [0.005, 0.02] | 2 | fixed text | KL. Lower is better. |" in text
    assert "Prompt format chat; decoding greedy, natural stop; answers cut off at 64" in text
    assert "Measured" not in model_card(pack.manifest, EDITS, pack.deltas).decode()


def test_a_figure_in_short() -> None:
    assert shown_figure(None) == ""
    assert shown_figure(Figure(0.123456, None, None, 1)) == "0.123"
    assert shown_figure(Figure(467.7, 447.1, 489.4, 20)) == "468 [447, 489]"
