"""The gradient of the outer loss against plain autograd through dense solves and dense weights, in float64."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F

from hf_edit.methods.msbp.hypernet import networks_of, new_set, per_step
from hf_edit.methods.msbp.network import HyperNetwork
from hf_edit.methods.msbp.proposal import Rule, desired
from hf_edit.methods.msbp.stream import Stream, Transformer
from hf_edit.methods.msbp.training.examples import Example, Prepared, unrelated_of
from hf_edit.methods.msbp.training.outer import Link, Objective, differentiate, linked, losses
from hf_edit.methods.training.teacher import Known, Teacher
from hf_edit.models.borrow import borrowed
from hf_edit.models.editable import EditableModel
from hf_edit.processes import Processes
from hf_edit.solvers.low_rank import LowRankDelta
from tests.methods.msbp.training_data import facts, prompts
from tests.tiny import tiny_model


pytestmark = pytest.mark.usefixtures("really_float64")
FIRST = 1
SIZE, LOCALITY = 1e-6, 0.7


def sets_of(model: EditableModel, rule: Rule, count: int) -> list[Transformer]:
    """Networks that are no longer the identity, so that every parameter has a gradient."""
    generator = torch.Generator().manual_seed(1)
    linears = model.linears[FIRST:3]
    shape = (linears[0].d_out, linears[0].d_in)
    step_size = 500.0 if rule.solve else 0.05
    sets = [new_set({shape: 2}, 5, 2, step_size, generator, torch.device("cpu"), torch.float64) for _ in range(count)]
    with torch.no_grad():
        for network in networks_of(sets):
            for parameter in network.parameters():
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    return sets


def reference(
    model: EditableModel,
    rule: Rule,
    before: dict[str, Tensor],
    links: Sequence[Link],
    protected: dict[str, Tensor],
    encoded: Sequence[tuple[tuple[int, ...], int]],
    unrelated: Sequence[Known],
) -> Tensor:
    """The outer loss as a function of the networks, with dense solves and dense weights."""
    weights = dict(model.model.named_parameters())
    squared: Tensor | float = 0.0
    for linear in model.linears[FIRST:3]:
        module = linear.layer - FIRST
        total = before[linear.name]
        for link in links:
            network: HyperNetwork = link.networks[linear.d_out, linear.d_in]
            K, V = link.step.captured.keys[linear.name], link.step.captured.gradients[linear.name]
            moments = link.normaliser.moments[linear.d_out, linear.d_in]
            rows = moments.scaled(torch.cat([K, V], dim=1))
            pseudo_keys, pseudo_gradients = network(rows, module)
            if rule.solve:
                c = (K * pseudo_keys).sum(dim=1, keepdim=True)
                D = -network.log_step[module].exp() * c * pseudo_gradients
                P = K.T @ K + network.log_ridge[module].exp() * protected[linear.name]
                total = total + torch.linalg.solve(P, K.T @ D).T
            else:
                total = total - network.log_step[module].exp() * pseudo_gradients.T @ pseudo_keys
        squared = squared + total.square().sum()
        weights[f"{linear.name}.weight"] = weights[f"{linear.name}.weight"] + total

    def logits(ids: Sequence[int]) -> Tensor:
        return functional_call(model.model, weights, (), {"input_ids": torch.tensor([list(ids)])}).logits[0]

    answers = [F.cross_entropy(logits(ids)[s - 1 : -1], torch.tensor(ids[s:]), reduction="none") for ids, s in encoded]
    drifts = []
    for known in unrelated:
        model_says = logits(known.text.ids.tolist())[known.text.start - 1 : -1].log_softmax(-1)
        p, chosen = known.log_probs.exp(), model_says.gather(-1, known.tokens)
        rest, model_rest = 1 - p.sum(-1), 1 - chosen.exp().sum(-1)
        drifts.append((p * (known.log_probs - chosen)).sum(-1) + rest * (rest / model_rest).log())
    return torch.cat(answers).mean() + LOCALITY * torch.cat(drifts).mean() + SIZE * squared


@pytest.mark.parametrize("edits", [2, 12], ids=["few rows", "more rows than inputs"])
@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize(
    ("rule", "shared"), [(Rule(), True), (Rule(), False), (Rule(solve=False), True)], ids=["solve", "apart", "mend"]
)
def test_gradients_equal_autograd_through_dense_solves(edits: int, steps: int, rule: Rule, shared: bool) -> None:
    model = EditableModel.of(tiny_model(dtype=torch.float64))
    examples = [Example.of(edit, prompts()) for edit in facts(edits + 3)]
    sets = sets_of(model, rule, 1 if shared else steps)
    stream = Stream(model, model.linears[FIRST:3], rule, per_step(sets, steps), 1.0, at_once=2)
    with borrowed(model.model):
        known = Teacher(model, [unrelated_of(examples)], FIRST).drawn(3, torch.Generator().manual_seed(0))
        earlier = Prepared.of(model, examples[edits:], FIRST)
        stream.protect(earlier.edits, 2.0)
        generator = torch.Generator().manual_seed(2)
        stream.deltas = {
            linear.name: LowRankDelta(
                torch.randn(linear.d_out, 3, generator=generator, dtype=torch.float64),
                torch.randn(3, linear.d_in, generator=generator, dtype=torch.float64),
            )
            for linear in stream.linears
        }
        before = stream.deltas
        batch = Prepared.of(model, examples[:edits], FIRST)
        links = []
        for number in range(steps):
            links.append(linked(stream, number, batch.edits))
            stream.take(links[-1].step)
        n, d_in = links[0].step.captured.keys[stream.linears[0].name].shape
        assert (n > d_in) == (edits == 12)
        objective = Objective([(batch.paraphrases, 1.0)], known, LOCALITY, SIZE)
        found = differentiate(stream, before, links, objective, Processes())
        mine = [parameter.grad for network in networks_of(sets) for parameter in network.parameters()]
        again = losses(stream, objective, Processes())

        for network in networks_of(sets):
            network.zero_grad()
        encoded = [(text.ids, text.answer_start) for example in examples[:edits] for text in example.paraphrases]
        dense = {name: delta.dense() for name, delta in before.items()}
        protected = {name: one.matrix() for name, one in stream.protected.items()}
        expected = reference(model, rule, dense, links, protected, encoded, known)
        expected.backward()
    assert found.total == pytest.approx(float(expected.detach()), rel=1e-9)
    assert again.total == pytest.approx(found.total, rel=1e-9)
    names = [name for network in networks_of(sets) for name, _ in network.named_parameters()]
    theirs = [parameter.grad for network in networks_of(sets) for parameter in network.parameters()]
    for name, ours, other in zip(names, mine, theirs, strict=True):
        if not rule.solve and name == "log_ridge":
            assert ours is None and other is None
            continue
        assert ours is not None and other is not None and other.abs().max() > 0, name
        torch.testing.assert_close(ours, other, rtol=1e-6, atol=1e-9 * float(other.abs().max()), msg=name)


@pytest.mark.parametrize("rule", [Rule(), Rule(solve=False)])
def test_what_is_differentiated_is_what_is_proposed(rule: Rule) -> None:
    model = EditableModel.of(tiny_model(dtype=torch.float64))
    sets = sets_of(model, rule, 1)
    stream = Stream(model, model.linears[FIRST:3], rule, sets, 1.0, at_once=2)
    with borrowed(model.model):
        batch = Prepared.of(model, [Example.of(edit, prompts()) for edit in facts(3)], FIRST)
        link = linked(stream, 0, batch.edits)
    for name, proposal in link.step.proposals.items():
        place = stream.places[name]
        rows = link.normaliser.rows(link.step.captured, name, place, centred=False)
        changes, _ = desired(rule, link.step.captured.keys[name], rows, link.networks[place.shape], place.module)
        torch.testing.assert_close(changes.detach(), proposal.changes)


@pytest.mark.parametrize("rule", [Rule(), Rule(solve=False)], ids=["solve", "mend"])
def test_a_process_without_texts_hands_over_the_same_tensors(rule: Rule, monkeypatch: pytest.MonkeyPatch) -> None:
    """As collectives need them; the shares add up."""
    model = EditableModel.of(tiny_model(dtype=torch.float64))
    stream = Stream(model, model.linears[FIRST:3], rule, sets_of(model, rule, 1), 1.0, at_once=2)
    handed: list[list[Tensor]] = []
    with borrowed(model.model):
        batch = Prepared.of(model, [Example.of(edit, prompts()) for edit in facts(2)], FIRST)
        link = linked(stream, 0, batch.edits)
        objective = Objective([(batch.paraphrases, 1.0)], [], 0.0, 0.0)
        monkeypatch.setattr(
            Processes, "add_up", lambda _, tensors: handed[-1].extend(tensor.clone() for tensor in tensors)
        )
        for processes in (Processes(), *(Processes(rank, 3) for rank in range(3))):
            handed.append([])
            differentiate(stream, {}, [link], objective, processes)
    whole, *shares = handed
    assert len(whole) == 1 + len(stream.linears) * (1 if rule.solve else 2)
    for tensor, *parts in zip(whole, *shares, strict=True):
        torch.testing.assert_close(torch.stack(parts).sum(dim=0), tensor, rtol=1e-9, atol=1e-12)


def test_no_dense_gradient_is_formed(monkeypatch: pytest.MonkeyPatch) -> None:
    model = EditableModel.of(tiny_model(dtype=torch.float64))
    stream = Stream(model, model.linears[FIRST:3], Rule(), sets_of(model, Rule(), 1), 1.0, at_once=2)
    dense = {(32, 56), (56, 32)}
    made: set[tuple[int, ...]] = set()

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor) and "mm" in str(func):
                made.add(tuple(out.shape))
            return out

    with borrowed(model.model):
        batch = Prepared.of(model, [Example.of(edit, prompts()) for edit in facts(2)], FIRST)
        link = linked(stream, 0, batch.edits)
        with Watch():
            differentiate(stream, {}, [link], Objective([(batch.paraphrases, 1.0)], [], 0.0, SIZE), Processes())
    assert made and not made & dense
    assert all(parameter.grad is None for parameter in model.model.parameters())
