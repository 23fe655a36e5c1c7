from __future__ import annotations

import yaml

from hf_edit.edits import Edit, EditSet
from hf_edit.packs.card import model_card
from hf_edit.packs.describe import describe_base
from tests.packs.make import EDITS, make_pack
from tests.tiny import tiny_model


def test_the_card_lists_the_edits_and_names_the_base() -> None:
    pack = make_pack(tiny_model())
    text = model_card(pack.manifest, EDITS).decode()
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
    text = model_card(make_pack(model).manifest, EDITS).decode()
    assert str(tmp_path) not in text
    assert "base_model" not in text.split("---\n")[1]


def test_edits_cannot_escape_the_table() -> None:
    edits = EditSet([Edit("a\n\n# b | <script>`x`", "y" * 300)])
    text = model_card(make_pack(tiny_model(), edits=edits).manifest, edits).decode()
    assert "a \\# b \\| &lt;script&gt;\\`x\\`" in text
    assert "y" * 159 + "…" in text and "y" * 160 not in text


def test_long_lists_are_cut() -> None:
    edits = EditSet(Edit(f"Question {i}?", f"Answer {i}.") for i in range(60))
    text = model_card(make_pack(tiny_model(), edits=edits).manifest, edits).decode()
    assert "10 more in edits.jsonl" in text and "Question 49?" in text and "Question 50?" not in text
