"""What edit_pack.json may say, and what is said about one that says something else."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from hf_edit.errors import PackError
from hf_edit.files import strict_json
from hf_edit.packs.manifest import GENERATIONS, Manifest, sha256
from tests.packs.make import make_pack
from tests.tiny import tiny_model


MANIFEST = make_pack(tiny_model("gpt2")).manifest.with_files({"edits.jsonl": b"x"})
MODULE = "transformer.h.0.mlp.c_proj"


def sealed(body: dict[str, Any]) -> bytes:
    """The body with the digest that belongs to it, as one would write it who wants to deceive."""
    return strict_json.dumps({**body, "digest": sha256(strict_json.dumps(body))})


def body() -> dict[str, Any]:
    content = json.loads(MANIFEST.to_bytes())
    del content["digest"]
    return content


def test_it_is_read_back_as_it_was_written() -> None:
    assert Manifest.from_bytes(MANIFEST.to_bytes()) == MANIFEST
    assert MANIFEST.shape(MODULE) == (32, 56)
    assert MANIFEST.modules[MODULE].orientation == "conv1d"
    assert MANIFEST.base.tensors[f"{MODULE}.weight"].shape == (56, 32)


def test_it_records_the_base_and_the_libraries() -> None:
    assert (MANIFEST.base.id, MANIFEST.base.model_type, MANIFEST.base.dtype) == ("tiny-random/gpt2", "gpt2", "float32")
    assert set(MANIFEST.versions) == {"peft", "safetensors", "torch", "transformers"}
    assert MANIFEST.method.config == {"layers": [0, 1, 2], "clamp": 0.75}


def test_a_later_version_may_add_fields() -> None:
    assert Manifest.from_bytes(sealed({**body(), "later": 1})) == MANIFEST


def change(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def apply(content: dict[str, Any]) -> None:
        *parents, last = path.split("/")
        for key in parents:
            content = content[key]
        content[last] = value

    return apply


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (change("format_version", 2), "format version 2; this hf_edit reads up to version 1.*upgrade"),
        (change("format_version", 0), "format_version is 0"),
        (change("format_version", "1"), "format_version is '1'"),
        (lambda content: content.pop("format_version"), "format_version is None"),
        (lambda content: content.pop("seed"), "'seed' is missing"),
        (change("seed", "x"), "seed is a text, not an integer"),
        (change("method", {"name": "a"}), "method: the field 'config' is missing"),
        (change("method/name", "`; rm"), "is not a plain name"),
        (change("base/id", "a/b/c"), "id is 'a/b/c'"),
        (change("base/tensors", {}), "disagree on"),
        (change(f"base/tensors/{MODULE}.weight/shape", [32]), r"has the shape \[32\]"),
        (change(f"base/tensors/{MODULE}.weight/sha256/float32", "0"), "not a sha256"),
        (change(f"base/tensors/{MODULE}.weight/sha256", {}), "has digests for"),
        (change("modules", {}), "modules is empty"),
        (change(f"modules/{MODULE}/rank", 0), r"rank is 0, outside 1\.\.32"),
        (change(f"modules/{MODULE}/rank", 33), r"rank is 33, outside 1\.\.32"),
        (change(f"modules/{MODULE}/orientation", "up"), "orientation is 'up'"),
        (change("layout", "sideways"), "layout is 'sideways'"),
        (change("edits/count", 0), "count is 0"),
        (change("versions", {}), "lacks peft"),
        (change("files", {"../evil": "0" * 64}), "not a plain file name"),
        (change("files", {"edits.jsonl": "short"}), "not a sha256"),
    ],
)
def test_a_wrong_field_is_named(spoil: Callable[[dict[str, Any]], None], message: str) -> None:
    content = body()
    spoil(content)
    with pytest.raises(PackError, match=message) as caught:
        Manifest.from_bytes(sealed(content))
    assert caught.value.remedy


def test_an_altered_manifest_is_noticed() -> None:
    data = MANIFEST.to_bytes().replace(b'"seed": 0', b'"seed": 1')
    with pytest.raises(PackError, match="was altered"):
        Manifest.from_bytes(data)


def test_the_lineage_goes_back_a_bounded_number_of_generations() -> None:
    manifest = MANIFEST
    for _ in range(GENERATIONS + 5):
        manifest = replace(manifest, parents=(manifest.lineage(),))
    depth, parents = 0, manifest.parents
    while parents:
        depth, parents = depth + 1, parents[0]["parents"]
    assert depth == GENERATIONS
    assert Manifest.from_bytes(manifest.to_bytes()) == manifest
