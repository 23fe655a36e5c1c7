"""What a probe compares step sizes with."""

from __future__ import annotations

import pytest
import torch

from hf_edit.methods.msbp import probe as module
from hf_edit.methods.msbp.config import CalibrationConfig
from hf_edit.methods.msbp.method import EMSEdit
from hf_edit.methods.msbp.probe import Probe
from hf_edit.methods.msbp.proposal import Normaliser
from hf_edit.methods.msbp.stream import Stream, Transformer
from hf_edit.methods.training.texts import prepared
from hf_edit.models.borrow import borrowed
from hf_edit.models.editable import EditableModel
from hf_edit.solvers.low_rank import LowRankDelta
from tests.methods.msbp.training_data import facts, prompts
from tests.methods.preserving import Fixed
from tests.methods.training.moments import random_moments
from tests.tiny import tiny_model


@pytest.mark.parametrize("weight", [0.0, 30.0])
@pytest.mark.parametrize("last", [False, True])
def test_a_step_is_compared_with_none_drift_included(
    weight: float, last: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the update so far, which has moved the base's own answers already; those that are taught do not count."""
    seen: list[tuple[float, float, float]] = []

    def smallest(loss_at, start, before, goal):  # type: ignore[no-untyped-def]
        seen.append((loss_at(0.0), before, goal))
        return start

    monkeypatch.setattr(module, "smallest_step", smallest)
    view, edits, format_ = EditableModel.of(tiny_model()), facts(3), prompts()
    own, taught = format_.encode("Tell me", "a fox please"), format_.encode(edits[0].prompt, "Nowhere.")
    linears, generator = view.linears[2:], torch.Generator().manual_seed(0)
    stream = Stream(view, linears, EMSEdit.rule, [Transformer(Normaliser.empty(linears))], 1.0, 2)
    config = CalibrationConfig(drift_weight=weight, share=0.6, target_loss=0.01)
    with borrowed(view.model):
        preserve = Fixed(random_moments(view, ()), [own, taught])
        probe = Probe(stream, format_, edits, preserve, config, 0)
        assert [tuple(known.text.ids.tolist()) for known in probe._known] == ([own.ids] if weight else [])
        B, A = (torch.randn(*size, generator=generator) for size in ((32, 2), (2, 56)))
        stream.deltas = {linears[0].name: LowRankDelta(B, A)}
        texts = prepared(view, [format_.encode(edit.prompt, edit.target) for edit in edits], stream.first)
        captured = stream.captured(texts)
        probe.step_size(texts, captured, stream.proposals(0, captured), last=last)
    ((at_zero, before, goal),) = seen
    assert before == pytest.approx(at_zero, rel=1e-4)
    assert goal == pytest.approx(0.01 if last else 0.4 * before)
    assert (before > float(captured.losses.mean()) + 0.1) == bool(weight)
