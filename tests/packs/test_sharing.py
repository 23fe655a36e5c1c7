"""Packs to a Hub and back through the real client."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import constants

from hf_edit.compose.merge import merge, unmerge
from hf_edit.compose.receipt import MergeReceipt
from hf_edit.edits import Edit, EditSet
from hf_edit.errors import HubError, PackError
from hf_edit.hub.card import BEGIN
from hf_edit.packs.pack import EditPack
from hf_edit.packs.sharing import publish_folder, pull
from tests.loopback_hub import REAL_CLIENT, LoopbackHub, loopback_hub  # noqa: F401
from tests.packs.make import make_pack, same_pack, sparse_deltas
from tests.tiny import tiny_model


pytestmark = REAL_CLIENT


@pytest.fixture(scope="module")
def pack() -> EditPack:
    return make_pack(tiny_model())


@pytest.fixture
def local(tmp_path: Path) -> EditPack:
    """A pack of a base that was loaded from a folder."""
    model = tiny_model()
    model.config._name_or_path = str(tmp_path / "base")
    return make_pack(model)


def test_push_and_pull_by_tag_and_commit(hub: LoopbackHub, pack: EditPack, tmp_path: Path) -> None:
    first = pack.push_to_hub("me/pack", tag="v1")
    other = make_pack(tiny_model(), edits=EditSet([Edit("What?", "That.")]), seed=3)
    second = other.push_to_hub("me/pack", tag="v2", layout="bf16", message="A better one")
    assert hub.repositories["me/pack"].messages == ["initial commit", "Edit pack of 2 edits", "A better one"]

    for revision in ("v1", first.commit):
        read = EditPack.from_pretrained("me/pack", revision=revision)
        assert same_pack(read, pack) and read.origin == first
    latest = EditPack.from_pretrained("me/pack")
    assert latest.edits == other.edits and latest.manifest.layout == "bf16" and latest.origin == second
    assert EditPack.from_pretrained("me/pack", token="my-token", cache_dir=tmp_path / "other").origin == second
    assert pack.origin is None


def test_the_card_is_valid_on_the_hub_and_names_no_folder(hub: LoopbackHub, pack: EditPack) -> None:
    pack.push_to_hub("me/pack")
    files = hub.files("me/pack")
    metadata = yaml.safe_load(files["README.md"].decode().split("---\n")[1])
    assert metadata["library_name"] == "peft" and {"hf-edit", "lora"} <= set(metadata["tags"])
    assert (metadata["base_model"], metadata["base_model_relation"]) == ("tiny-random/llama", "adapter")
    assert json.loads(files["adapter_config.json"])["base_model_name_or_path"] == "tiny-random/llama"


def test_pushing_again_keeps_what_the_owner_changed(hub: LoopbackHub, pack: EditPack) -> None:
    pack.push_to_hub("me/pack")
    card = hub.files("me/pack")["README.md"].decode()
    card = card.replace(BEGIN, f"Made with care.\n\n{BEGIN}").replace("---\n", "---\nlicense: mit\n", 1)
    hub.upload("me/pack", {"README.md": card.encode(), "picture.png": b"x", "old.sig": b"of the first pack"})
    make_pack(tiny_model(), edits=EditSet([Edit("Who?", "Nobody at all.")])).push_to_hub("me/pack", values=False)
    files = hub.files("me/pack")
    text = files["README.md"].decode()
    assert "Made with care." in text and "license: mit" in text
    assert "Nobody at all." in text and "- Removed capital" in text
    assert "Veldora" not in text.partition("## Changes")[0]
    assert "picture.png" in files and "values.safetensors" not in files and "old.sig" not in files
    assert EditPack.from_pretrained("me/pack").source is None


def test_the_card_keeps_what_changed_from_version_to_version(hub: LoopbackHub, pack: EditPack) -> None:
    def told() -> str:
        return hub.files("me/packs")["lamp/README.md"].decode().partition("## Changes")[2].partition("<!--")[0].strip()

    more = EditSet([*pack.edits, Edit("Is *it* red?", "No.", id="red")])
    changed = make_pack(tiny_model(), edits=more)
    remade = dataclasses.replace(changed, manifest=dataclasses.replace(changed.manifest, seed=7))
    first = pack.push_to_hub("me/packs", subfolder="lamp")
    assert not told()
    second = changed.push_to_hub("me/packs", subfolder="lamp")
    added = f"### Since {first.commit[:7]}\n\n- Added red, Is \\*it\\* red?: No."
    for again in (changed, changed):  # the same edits and settings
        again.push_to_hub("me/packs", subfolder="lamp", layout="bf16")
        assert told() == added
    third = hub.repositories["me/packs"].branches["main"]
    assert third != second.commit
    remade.push_to_hub("me/packs", subfolder="lamp")
    assert told() == f"### Since {third[:7]}\n\n- Setting seed: 0 → 7\n\n{added}"

    hub.upload("me/packs", {"lamp/edit_pack.json": b"{}"})
    pack.push_to_hub("me/packs", subfolder="lamp")  # what is there cannot be compared, what is told stays
    assert told().endswith(added)


def test_of_very_many_changes_the_first_are_told(hub: LoopbackHub, pack: EditPack) -> None:
    pack.push_to_hub("me/pack")
    many = EditSet([*pack.edits, *(Edit(f"What is {i}?", "A number.", id=str(i)) for i in range(60))])
    make_pack(tiny_model(), edits=many).push_to_hub("me/pack")
    card = hub.files("me/pack")["README.md"].decode()
    assert card.count("\n- Added ") == 50 and "- and 10 more" in card


def test_several_packs_in_one_repository(hub: LoopbackHub, pack: EditPack) -> None:
    other = make_pack(tiny_model(), ranks=(2,))
    one = pack.push_to_hub("me/packs", subfolder="one")
    two = other.push_to_hub("me/packs", subfolder="sets/two", collection="Packs")
    assert two.url == f"{hub.url}/me/packs/tree/{two.commit}/sets/two"
    read = EditPack.from_pretrained("me/packs", subfolder="one")
    assert same_pack(read, pack) and read.origin == dataclasses.replace(one, commit=two.commit)
    assert same_pack(EditPack.from_pretrained("me/packs", subfolder="sets/two"), other)
    for subfolder in (None, "three"):
        with pytest.raises(PackError, match="me/packs"):
            EditPack.from_pretrained("me/packs", subfolder=subfolder)
    with pytest.raises(PackError, match="leads out"):
        pack.push_to_hub("me/packs", subfolder="../three")


def test_a_base_from_a_folder_needs_its_id_on_the_hub(hub: LoopbackHub, local: EditPack, tmp_path: Path) -> None:
    with pytest.raises(HubError, match="nobody else has it") as caught:
        local.push_to_hub("me/pack")
    assert "base_model='owner/name'" in caught.value.remedy and not hub.repositories
    (tmp_path / "base").mkdir()
    for wrong in ("/some/folder", str(tmp_path / "base")):
        with pytest.raises(HubError, match="no id on the Hub"):
            local.push_to_hub("me/pack", base_model=wrong)
    local.push_to_hub("me/pack", base_model="org/base")
    read = EditPack.from_pretrained("me/pack")
    assert (read.base, read.manifest.base.revision) == ("org/base", None)
    assert not any(str(tmp_path).encode() in content for content in hub.files("me/pack").values())
    read.verify(tiny_model())


def test_a_repository_of_something_else_is_left_alone(hub: LoopbackHub, pack: EditPack) -> None:
    hub.upload("me/model", {"config.json": b"{}", "model.safetensors": b""})
    before = hub.repositories["me/model"].branches["main"]
    with pytest.raises(HubError, match="holds a model or adapter that is no edit pack"):
        pack.push_to_hub("me/model")
    assert hub.repositories["me/model"].branches["main"] == before
    pack.push_to_hub("me/model", subfolder="edits")


def test_private_and_gated(hub: LoopbackHub, pack: EditPack, monkeypatch: pytest.MonkeyPatch) -> None:
    pack.push_to_hub("me/secret", private=True)
    assert EditPack.from_pretrained("me/secret").edits == pack.edits
    monkeypatch.setattr(constants, "HF_HUB_CACHE", constants.HF_HUB_CACHE + "2")
    monkeypatch.delenv("HF_TOKEN")
    for token in (None, "your-token"):
        with pytest.raises(HubError, match="no such repository that you may read") as caught:
            EditPack.from_pretrained("me/secret", token=token)
        assert "hf auth login" in caught.value.remedy
    assert EditPack.from_pretrained("me/secret", token="my-token").edits == pack.edits

    hub.repositories["me/secret"].private, hub.repositories["me/secret"].gated = False, True
    monkeypatch.setattr(constants, "HF_HUB_CACHE", constants.HF_HUB_CACHE + "3")
    with pytest.raises(HubError, match="gated"):
        EditPack.from_pretrained("me/secret", token="your-token")


def test_what_is_not_there(hub: LoopbackHub, pack: EditPack) -> None:
    with pytest.raises(HubError, match="'me/none' is no folder here, and fetching it from the Hub failed: .* no such"):
        EditPack.from_pretrained("me/none")
    pack.push_to_hub("me/pack")
    with pytest.raises(HubError, match="at revision 'v9' .* no such revision"):
        EditPack.from_pretrained("me/pack", revision="v9")


def test_offline_from_the_cache(hub: LoopbackHub, pack: EditPack, monkeypatch: pytest.MonkeyPatch) -> None:
    done = pack.push_to_hub("me/pack", tag="v1")
    EditPack.from_pretrained("me/pack", revision="v1")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for revision in ("v1", done.commit):
        assert EditPack.from_pretrained("me/pack", revision=revision).origin == done
    with pytest.raises(HubError, match="cannot be reached, and the cache does not hold it") as caught:
        EditPack.from_pretrained("me/pack", revision="v2")
    assert "HF_HUB_OFFLINE" in caught.value.remedy


def test_without_a_network(hub: LoopbackHub, pack: EditPack, monkeypatch: pytest.MonkeyPatch) -> None:
    done = pack.push_to_hub("me/pack")
    EditPack.from_pretrained("me/pack")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert EditPack.from_pretrained("me/pack").origin == done
    with pytest.raises(HubError, match="cannot be reached"):
        EditPack.from_pretrained("me/other")


def test_a_busy_hub_and_a_broken_connection(hub: LoopbackHub, pack: EditPack) -> None:
    pack.push_to_hub("me/pack")
    hub.fail("GET", "/api/models/me/pack", 503, times=2)
    hub.cut("GET", "/resolve/.*adapter_model.safetensors")
    assert same_pack(EditPack.from_pretrained("me/pack"), pack)
    assert not any(fault.times for fault in hub.faults)


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "edits.jsonl", "edit_pack.json"])
def test_a_file_that_was_tampered_with_on_the_hub(hub: LoopbackHub, pack: EditPack, name: str, tmp_path: Path) -> None:
    done = pack.push_to_hub("me/pack", tag="v1")
    content = bytearray(hub.files("me/pack")[name])
    content[-20] ^= 1
    hub.upload("me/pack", {name: bytes(content)})
    with pytest.raises(PackError, match=name):
        EditPack.from_pretrained("me/pack")
    with pytest.raises(PackError, match=name):
        pull("me/pack", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert EditPack.from_pretrained("me/pack", revision="v1").origin == done


def test_a_folder_goes_there_and_back_byte_for_byte(hub: LoopbackHub, pack: EditPack, tmp_path: Path) -> None:
    pack.save_pretrained(tmp_path / "pack", layout="compact")
    (tmp_path / "pack" / "model.sig").write_bytes(b"signature")
    done = publish_folder(tmp_path / "pack", "me/pack", tag="v1")
    copy, origin = pull("me/pack", tmp_path / "out", revision="v1")
    assert origin == done and copy.edits == pack.edits
    names = sorted(path.name for path in (tmp_path / "pack").iterdir())
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names and "model.sig" in names
    for name in set(names) - {"README.md"}:
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "pack" / name).read_bytes()
    assert publish_folder(tmp_path / "out", "me/pack") == done  # nothing changed

    make_pack(tiny_model(), ranks=(2,)).push_to_hub("me/other")
    pull("me/other", tmp_path / "out")  # replaces the pack that is there
    assert len(EditPack.from_pretrained(tmp_path / "out").deltas) == 1
    shutil.rmtree(tmp_path / "out")


def test_a_card_that_was_pulled_and_edited_goes_to_another_repository(
    hub: LoopbackHub, pack: EditPack, tmp_path: Path
) -> None:
    pack.save_pretrained(tmp_path / "first")
    publish_folder(tmp_path / "first", "me/pack")
    pull("me/pack", tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text("utf-8")
    card = card.replace(BEGIN, f"Made with care.\n\n{BEGIN}").replace("---\n", "---\nlicense: mit\n", 1)
    (tmp_path / "out" / "README.md").write_text(f"{card}\nAsk me.\n", encoding="utf-8")
    for repository in ("me/copy", "me/pack", "me/pack"):
        publish_folder(tmp_path / "out", repository)
        text = hub.files(repository)["README.md"].decode()
        assert all(text.count(mine) == 1 for mine in ("Made with care.", "Ask me.", "license: mit"))
        assert text.count("# Edit pack:") == 1


def test_a_sparse_pack_is_not_tagged_as_lora_after_a_portable_one(hub: LoopbackHub) -> None:
    model = tiny_model()
    few = make_pack(model, deltas=sparse_deltas(model, (2, 3)))
    for layout, tagged in (("portable", True), ("sparse", False)):
        few.push_to_hub("me/pack", layout=layout)
        assert ("- lora\n" in hub.files("me/pack")["README.md"].decode()) is tagged


def test_a_damaged_folder_is_not_published(hub: LoopbackHub, pack: EditPack, tmp_path: Path) -> None:
    pack.save_pretrained(tmp_path / "pack")
    (tmp_path / "pack" / "edits.jsonl").write_text("{}\n")
    with pytest.raises(PackError, match="altered"):
        publish_folder(tmp_path / "pack", "me/pack")
    assert not hub.repositories


def test_a_merge_is_undone_from_the_hub(hub: LoopbackHub, pack: EditPack, tmp_path: Path) -> None:
    model = tiny_model()
    merge(model, pack)
    model.save_pretrained(tmp_path / "merged")
    commit = hub.upload("me/merged", tmp_path / "merged")
    hub.upload("me/base", {"config.json": b"{}"})
    assert MergeReceipt.beside("me/base") is None
    with pytest.raises(PackError, match="'?me/base'? has no folder merge_receipt"):
        MergeReceipt.load("me/base")
    hub.upload("me/merged", {"merge_receipt/receipt.json": b"{}"})
    unmerge(model, MergeReceipt.load("me/merged", revision=commit))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), tiny_model().parameters(), strict=True))


def test_a_base_from_a_folder_below_is_no_repository(
    hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "models" / "base").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    model = tiny_model()
    model.config._name_or_path = "models/base"
    pack = make_pack(model)
    assert (pack.manifest.base.id, pack.base_path) == (None, "models/base")
    with pytest.raises(HubError, match="nobody else has it"):
        pack.push_to_hub("me/pack")


def test_a_folder_without_a_card_leaves_the_owners(hub: LoopbackHub, pack: EditPack, tmp_path: Path) -> None:
    pack.push_to_hub("me/pack")
    hub.upload("me/pack", {"README.md": b"My own words."})
    pack.save_pretrained(tmp_path / "pack")
    (tmp_path / "pack" / "README.md").unlink()
    publish_folder(tmp_path / "pack", "me/pack")
    assert hub.files("me/pack")["README.md"] == b"My own words."
