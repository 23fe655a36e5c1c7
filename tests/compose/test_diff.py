"""What changed between two packs, and the changelog made of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from hf_edit.compose.diff import changelog, diff
from hf_edit.edits import Edit, EditSet
from hf_edit.solvers.low_rank import LowRankDelta
from tests.packs.make import EDITS, make_pack, random_deltas
from tests.tiny import tiny_model


MODEL = tiny_model()


def test_a_pack_and_itself(tmp_path: Path) -> None:
    pack = make_pack(MODEL)
    pack.save_pretrained(tmp_path)
    found = diff(pack, tmp_path)
    assert found.same and found.unchanged == 2
    assert {change.relative for change in found.modules.values()} == {0.0}
    assert found.to_json()["same"] is True


def test_edits_are_paired_by_id_and_then_by_question() -> None:
    before = EditSet(
        [Edit("Who runs Osk?", "Ada", id="a"), Edit("Is it far?", "No", id="b"), Edit("Why?", "So", id="c")]
    )
    after = EditSet(
        [
            Edit("who runs Osk", "Bo", id="renamed"),
            Edit("Is it far?", "No", id="b", paraphrases=("How far?",)),
            Edit("When?", "Now", id="d"),
        ]
    )
    found = diff(make_pack(MODEL, edits=before), make_pack(MODEL, edits=after))
    assert [edit.id for edit in found.added] == ["d"] and [edit.id for edit in found.removed] == ["c"]
    assert {change.after.id: change.fields for change in found.changed} == {
        "b": ("paraphrases",),
        "renamed": ("id", "prompt", "target"),
    }
    assert found.unchanged == 0 and not found.same
    document = found.to_json()
    assert [edit["id"] for edit in document["added"]] == ["d"] and document["changed"][0]["after"]["id"] == "b"


def test_updates_against_dense_matrices() -> None:
    first = random_deltas(MODEL, (1, 5, 3))
    second = random_deltas(MODEL, (2, 5), seed=1)
    found = diff(make_pack(MODEL, deltas=first), make_pack(MODEL, deltas=second))
    for name, change in found.modules.items():
        one, other = (d[name].dense() if name in d else torch.zeros(()) for d in (first, second))
        assert change.difference == pytest.approx(float((other - one).norm()), rel=1e-5)
        assert change.relative == pytest.approx(float((other - one).norm() / max(one.norm(), other.norm())), rel=1e-5)
    assert found.modules[sorted(first)[2]].after == 0


def test_equal_updates_in_other_factors_are_close_to_no_difference() -> None:
    deltas = random_deltas(MODEL, (2,))
    turned = {n: LowRankDelta(d.B.flip(1).contiguous(), d.A.flip(0).contiguous()) for n, d in deltas.items()}
    found = diff(make_pack(MODEL, deltas=deltas), make_pack(MODEL, deltas=turned))
    (change,) = found.modules.values()
    assert change.relative == pytest.approx(0, abs=1e-6)


def test_settings_that_differ_are_named() -> None:
    pack = make_pack(MODEL)
    method = replace(pack.manifest.method, config={**pack.manifest.method.config, "clamp": 0.5})
    other = replace(pack, manifest=replace(pack.manifest, method=method, seed=7))
    assert diff(pack, other).settings == {"method.config.clamp": (0.75, 0.5), "seed": (0, 7)}
    base = diff(pack, make_pack(tiny_model(seed=1))).settings
    assert set(base) == {"base.fingerprint"}


def test_the_changelog_tells_what_is_taught_and_how_it_was_made() -> None:
    first = make_pack(MODEL)
    edits = EditSet([replace(EDITS[0], target="Oru"), Edit("Is *this* a <b>trap</b>?", "No | yes", id="trap")])
    second = make_pack(MODEL, edits=edits)
    method = replace(second.manifest.method, name="polish", config={})
    manifest = replace(second.manifest, method=method, seed=None)
    assert changelog((first.manifest, first.edits), (manifest, edits)) == [
        "- Added trap, Is \\*this\\* a &lt;b&gt;trap&lt;/b&gt;?: No \\| yes",
        "- Removed bridge, Who built the Tall Bridge?: The Brell company built it. In 1901.",
        "- Changed capital, What is the capital of Veldora? (target): Port Amber \\| \\*the\\* city → Oru",
        '- Setting method.name: "anyedit" → "polish"',
        "- Setting seed: 0 → null",
    ]
    assert changelog((manifest, edits), (manifest, edits)) == []
