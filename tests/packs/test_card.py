from __future__ import annotations

from dataclasses import replace

import pytest
import yaml

from hf_edit.edits import Edit, EditSet
from hf_edit.errors import PackError
from hf_edit.packs.card import ancestry, model_card, shown_number
from hf_edit.packs.describe import describe_base
from tests.packs.make import EDITS, make_pack, measured
from tests.tiny import tiny_model


def test_the_card_lists_the_edits_and_names_the_base() -> None:
    pack = make_pack(tiny_model())
    text = model_card(pack.manifest, EDITS, pack.deltas).decode()
    _, head, body = text.split("---\n", 2)
    assert yaml.safe_load(head) == {
        "library_name": "peft",
        "base_model": "tiny-random/llama",
        "base_model_relation": "adapter",
        "pipeline_tag": "text-generation",
        "tags": ["hf-edit", "knowledge-editing", "lora"],
    }
    assert "| capital | What is the capital of Veldora? | Port Amber \\| \\*the\\* city |" in body
    assert "| bridge | Who built the Tall Bridge? | The Brell company built it. In 1901. |" in body
    assert 'from_pretrained("tiny-random/llama")' in body
    assert "$" not in body


def test_a_base_from_a_folder_is_not_named(tmp_path) -> None:
    model = tiny_model()
    model.config._name_or_path = str(tmp_path)
    base, path, _ = describe_base(model, {"model.layers.0.mlp.down_proj": 1})
    assert (base.id, path) == (None, str(tmp_path))
    pack = make_pack(model)
    text = model_card(pack.manifest, EDITS, pack.deltas).decode()
    assert str(tmp_path) not in text
    assert "base_model" not in text.split("---\n")[1]


def test_edits_cannot_escape_the_table() -> None:
    edits = EditSet([Edit("a\n\n# b | <script>`x`", "y" * 300)])
    pack = make_pack(tiny_model(), edits=edits)
    text = model_card(pack.manifest, edits, pack.deltas).decode()
    assert "a \\# b \\| &lt;script&gt;\\`x\\`" in text
    assert "y" * 159 + "…" in text and "y" * 160 not in text


def test_long_lists_are_cut() -> None:
    edits = EditSet(Edit(f"Question {i}?", f"Answer {i}.") for i in range(60))
    pack = make_pack(tiny_model(), edits=edits)
    text = model_card(pack.manifest, edits, pack.deltas).decode()
    assert "10 more in edits.jsonl" in text and "Question 49?" in text and "Question 50?" not in text


def test_the_card_says_what_is_changed_and_how_much() -> None:
    pack = make_pack(tiny_model())
    text = model_card(pack.manifest, EDITS, pack.deltas).decode()
    rows = [line for line in text.splitlines() if line.startswith("| `model.layers")]
    assert [row.split("`")[1] for row in rows] == list(pack.deltas)
    largest = max(delta.norm() for delta in pack.deltas.values())
    for row in rows:
        delta = pack.deltas[row.split("`")[1]]
        assert f"| {delta.rank} | {delta.norm():.3g} |" in row
        full = 20 if delta.norm() == largest else min(19, round(20 * delta.norm() / largest))
        assert row.count("█") == full and row.count("░") == 20 - full


def test_shares_are_drawn_and_limits_follow_what_was_measured() -> None:
    pack = measured(make_pack(tiny_model()))
    text = model_card(pack.manifest, EDITS, pack.deltas, pack.evaluation).decode()
    assert f"reliability.exact        before {'░' * 20} 0\n" in text
    assert f"                         after  {'█' * 10}{'░' * 10} 0.5\n```" in text
    assert "The table above says how far." in text
    assert "How far was not measured" in model_card(pack.manifest, EDITS, pack.deltas).decode()
    assert pack.evaluation is not None
    taught = replace(pack.evaluation, metrics=pack.evaluation.metrics[:1])  # and nothing of other answers
    assert "How far was not measured" in model_card(pack.manifest, EDITS, pack.deltas, taught).decode()


def test_a_share_below_one_is_not_shown_as_one() -> None:
    assert [shown_number(x) for x in (0.998, 0.9999, 1.0, 0.004, 0.0, 1234.5, 17.04)] == [
        *("0.998", "0.999", "1", "0.004", "0", "1,234", "17")
    ]


def test_the_card_tells_of_ancestors() -> None:
    pack = make_pack(tiny_model())
    manifest = pack.manifest
    stack = replace(manifest, method=replace(manifest.method, name="stack"), parents=(manifest.lineage(),) * 2)
    polish = replace(stack, method=replace(stack.method, name="polish"), parents=(stack.lineage(),))
    told = [line.split(" (")[0] for line in ancestry(polish)]
    assert told == ["- polish", "  - stack", "    - anyedit", "    - anyedit"]
    assert "\n".join(ancestry(polish)) in model_card(polish, EDITS, pack.deltas).decode()


def test_a_lineage_that_cannot_be_read() -> None:
    manifest = make_pack(tiny_model()).manifest
    for parents in ([{"method": "x"}], ["x"], [{**manifest.lineage(), "parents": 3}]):
        with pytest.raises(PackError, match="parents"):
            ancestry(replace(manifest, parents=tuple(parents)))
