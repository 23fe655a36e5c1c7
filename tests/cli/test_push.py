"""`hf-edit push`, `hf-edit pull`, and the statistics' verbs of the same names."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import constants, snapshot_download

from hf_edit.edits import Edit, EditSet
from hf_edit.packs.manifest import Edits, sha256
from hf_edit.packs.pack import EditPack
from tests.cli.conftest import Command, failed
from tests.loopback_hub import REAL_CLIENT, LoopbackHub, loopback_hub  # noqa: F401
from tests.packs.make import make_pack
from tests.packs.test_signing import write_keys
from tests.tiny import tiny_model


pytestmark = REAL_CLIENT


def test_a_pack_goes_there_and_back(hub: LoopbackHub, hf_edit: Command, pack: Path, tmp_path: Path) -> None:
    options = ("--tag", "v1", "--private", "--subfolder", "lamp", "--branch", "next", "--collection", "Lamps")
    document = json.loads(hf_edit("push", pack, "me/packs", *options, "--json").stdout)
    repository = hub.repositories["me/packs"]
    assert repository.private and repository.tags == {"v1": document["commit"]} and len(hub.collections) == 1
    assert (document["repository"], document["subfolder"], document["tag"]) == ("me/packs", "lamp", "v1")
    assert document["url"].endswith(f"{document['commit']}/lamp")

    where = ("me/packs", "--out", tmp_path / "copy", "--revision", "v1", "--subfolder", "lamp")
    pulled = json.loads(hf_edit("pull", *where, "--json").stdout)
    assert (pulled["commit"], pulled["edits"], pulled["base"]) == (document["commit"], ["lamp"], "tiny-random/llama")
    for name in ("edit_pack.json", "adapter_model.safetensors", "edits.jsonl"):
        assert (tmp_path / "copy" / name).read_bytes() == (pack / name).read_bytes()
    shown = hf_edit("pull", *where)
    assert document["commit"] in shown.stdout and shown.exit_code == 0


def test_other_layouts_and_bases(hub: LoopbackHub, hf_edit: Command, pack: Path) -> None:
    options = ("--layout", "bf16", "--no-values", "--base-model", "org/copy", "--message", "Smaller")
    result = hf_edit("push", pack, "me/pack", *options)
    assert result.exit_code == 0 and f"{hub.url}/me/pack/tree/" in result.stdout
    read = EditPack.from_pretrained("me/pack")
    assert (read.manifest.layout, read.base) == ("bf16", "org/copy")
    assert hub.repositories["me/pack"].messages[-1] == "Smaller"


def test_inspect_takes_a_pack_of_the_hub(hub: LoopbackHub, hf_edit: Command, pack: Path) -> None:
    hf_edit("push", pack, "me/pack")
    assert "Who made the lamp?" in hf_edit("inspect", "me/pack").stdout


def test_a_pack_of_the_hub_is_read_at_the_revision_that_is_named(
    hub: LoopbackHub, hf_edit: Command, pack: Path, base: Path, tmp_path: Path
) -> None:
    first = json.loads(hf_edit("push", pack, "me/pack", "--tag", "v1", "--json").stdout)["commit"]
    other = EditPack.from_pretrained(pack)
    edits = EditSet([Edit("Who made the lamp?", "Nobody.", id="lamp"), Edit("What is tea?", "Hot.", id="tea")])
    sealed = Edits(2, sha256(edits.dumps().encode()))
    replace(other, edits=edits, manifest=replace(other.manifest, edits=sealed)).push_to_hub("me/pack")
    assert json.loads(hf_edit("inspect", "me/pack@v1", "--json").stdout)["commit"] == first
    assert "Tarvello" in hf_edit("inspect", "me/pack@v1").stdout and "Hot." in hf_edit("inspect", "me/pack").stdout
    assert f"at commit {first}" in hf_edit("verify", "me/pack@v1").stdout
    for verb in ("inspect", "verify"):
        failed(hf_edit(verb, "me/pack", "--revision", "v1"), "of the base model", "owner/name@v1")
    card = hub.files("me/pack")["README.md"].decode()
    assert f"## Changes\n\n### Since {first[:7]}" in card and "- Added tea" in card and "Nobody." in card
    hf_edit("pull", "me/pack", "--out", tmp_path / "pack")
    hf_edit("push", tmp_path / "pack", "me/copy")
    assert "## Changes" not in hub.files("me/copy")["README.md"].decode()


@pytest.mark.parametrize("extra", ["config.json", "model.safetensors", "pytorch_model.bin", "onnx/model.onnx"])
def test_what_a_repository_holds_beside_the_pack_is_told_though_it_is_not_fetched(
    hub: LoopbackHub, hf_edit: Command, pack: Path, extra: str
) -> None:
    hf_edit("push", pack, "me/pack")
    hf_edit("push", pack, "me/pack", "--subfolder", "more/lamp")
    repository = hub.repositories["me/pack"]
    repository.commit("main", {**hub.files("me/pack"), "LICENSE": b"MIT", "more/lamp/README.md": b"x"}, "fine")
    assert hf_edit("verify", "me/pack").exit_code == 0
    assert json.loads(hf_edit("inspect", "me/pack", "--json").stdout)["unlisted_files"] == []
    repository.commit("main", {**hub.files("me/pack"), extra: b"{}"}, "not fine")
    entry = extra.partition("/")[0]
    failed(hf_edit("verify", "me/pack"), f"me/pack holds what the manifest does not list: {entry}", "hf-edit pull")
    assert json.loads(hf_edit("inspect", "me/pack", "--json").stdout)["unlisted_files"] == [entry]


def test_a_signature_holds_whatever_else_of_the_repository_was_fetched(
    hub: LoopbackHub, hf_edit: Command, pack: Path, tmp_path: Path
) -> None:
    ec = pytest.importorskip("cryptography.hazmat.primitives.asymmetric.ec")
    pytest.importorskip("model_signing")
    secret, public = write_keys(tmp_path, "mine", ec.generate_private_key(ec.SECP256R1()))
    shutil.copytree(pack, tmp_path / "pack")
    hf_edit("sign", tmp_path / "pack", "--private-key", secret)
    hf_edit("push", tmp_path / "pack", "me/pack")
    hf_edit("push", pack, "me/pack", "--subfolder", "other")
    hub.upload("me/pack", {"LICENSE": b"MIT"})
    snapshot_download("me/pack")
    assert "signed by mine.pub" in hf_edit("verify", "me/pack", "--public-key", public).stdout
    hub.upload("me/pack", {"config.json": b"{}"})
    failed(hf_edit("verify", "me/pack", "--public-key", public), "does not list: config.json")


def test_what_a_repository_holds_cannot_be_told_offline(
    hub: LoopbackHub, hf_edit: Command, pack: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hf_edit("push", pack, "me/pack")
    hf_edit("inspect", "me/pack")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    failed(hf_edit("verify", "me/pack"), "Listing 'me/pack'", "offline")
    document = json.loads(hf_edit("inspect", "me/pack", "--json").stdout)
    assert document["unlisted_files"] is None and "Listing 'me/pack'" in document["notes"][0]


def test_versions_of_a_pack_of_the_hub_are_compared(hub: LoopbackHub, hf_edit: Command, pack: Path) -> None:
    hf_edit("push", pack, "me/pack", "--tag", "v1")
    lower = EditSet([Edit("Who made the lamp?", "Nobody.", id="lamp")])
    make_pack(tiny_model(), edits=lower).push_to_hub("me/pack", tag="v2")
    document = json.loads(hf_edit("diff", "me/pack@v1", "me/pack@v2", "--json").stdout)
    assert (document["first"], document["second"]) == ("me/pack@v1", "me/pack@v2")
    assert [change["after"]["target"] for change in document["changed"]] == ["Nobody."]


def test_a_pack_in_a_folder_of_a_repository(
    hub: LoopbackHub, hf_edit: Command, pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hf_edit("push", pack, "me/packs", "--subfolder", "sets/lamp", "--tag", "v1")
    make_pack(tiny_model()).push_to_hub("me/packs", subfolder="other")
    for name in ("me/packs/sets/lamp", "me/packs/sets/lamp@v1", "me/packs/sets/lamp/"):
        assert "Who made the lamp?" in hf_edit("inspect", name).stdout
    assert json.loads(hf_edit("diff", pack, "me/packs/sets/lamp", "--json").stdout)["same"]
    hf_edit("pull", "me/packs/sets/lamp@v1", "--out", tmp_path / "pulled")
    assert json.loads(hf_edit("diff", pack, tmp_path / "pulled", "--json").stdout)["same"]
    failed(hf_edit("verify", "me/packs/lamp"), "no folder 'lamp' with a pack")
    failed(hf_edit("inspect", "me/packs/../lamp"), "leads out")

    monkeypatch.chdir(tmp_path)
    make_pack(tiny_model()).save_pretrained("me/packs/sets/lamp@v1")
    assert "capital" in hf_edit("inspect", "me/packs/sets/lamp@v1").stdout  # what is here goes before
    failed(hf_edit("inspect", "me/packs/sets/none"), "me/packs/sets/none")


def test_a_users_mistakes(
    hub: LoopbackHub, hf_edit: Command, pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed(hf_edit("push", tmp_path / "none", "me/pack"), "is not a folder")
    failed(hf_edit("push", pack, "no/such/id"), "no id of a repository", "owner/name")
    failed(hf_edit("push", pack, "you/pack"), "gives no right")
    failed(hf_edit("push", pack, "me/pack", "--layout", "round"), "no layout 'round'")
    failed(hf_edit("push", pack, "me/pack", "--subfolder", "../up"), "leads out")
    failed(hf_edit("pull", "me/none", "--out", tmp_path / "out"), "no such repository", "hf auth login")
    hf_edit("push", pack, "me/pack", "--tag", "v1")
    failed(hf_edit("push", pack, "me/pack", "--tag", "v1"), "has a tag 'v1' already")
    failed(hf_edit("pull", "me/pack", "--revision", "v2", "--out", tmp_path / "out"), "no such revision")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("x")
    failed(hf_edit("pull", "me/pack", "--out", tmp_path / "notes"), "does not belong there: mine.txt")
    monkeypatch.setenv("HF_TOKEN", "wrong")
    failed(hf_edit("push", pack, "me/pack"), "knows no user by the token", "hf auth login")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    failed(hf_edit("push", pack, "me/pack"), "4 tries ended with", "network")
    failed(hf_edit("pull", "me/other", "--out", tmp_path / "out"), "cannot be reached")
    assert not (tmp_path / "out").exists()


def test_statistics(
    hub: LoopbackHub, hf_edit: Command, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_EDIT_CACHE", str(tmp_path / "here"))
    model = ("--model", base)
    failed(hf_edit("stats", "push", "me/stats", *model), "no statistics of this model", "hf-edit stats collect")
    options = ("--tokens", 250, "--conversations", 0, "--layers", "1", "--format", "plain", "--json")
    hf_edit("stats", "collect", *model, *options)
    where = ("--tag", "v1", "--collection", "Statistics")
    document = json.loads(hf_edit("stats", "push", "me/stats", *model, *where, "--json").stdout)
    assert hub.repositories["me/stats"].tags == {"v1": document["commit"]} and len(hub.collections) == 1

    monkeypatch.setenv("HF_EDIT_CACHE", str(tmp_path / "there"))
    pulled = json.loads(hf_edit("stats", "pull", "me/stats", *model, "--at", "v1", "--json").stdout)
    assert pulled["commit"] == document["commit"] and len(pulled["files"]) == 2
    assert "model.layers.1.mlp.down_proj" in hf_edit("stats", "show", *model).stdout
    assert "0 new file(s)" in hf_edit("stats", "pull", "me/stats", *model).stdout
    failed(hf_edit("stats", "pull", "me/none", *model), "no such repository")


@pytest.mark.filterwarnings("ignore:.*loss stayed above:hf_edit.errors.HfEditWarning")  # a random model learns little
def test_apply_finds_statistics_where_it_is_told(
    hub: LoopbackHub, hf_edit: Command, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_EDIT_CACHE", str(tmp_path / "here"))
    options = ("--tokens", 300, "--conversations", 0, "--layers", "1", "--format", "plain")
    hf_edit("stats", "collect", "--model", base, *options)
    hf_edit("stats", "push", "me/stats", "--model", base)
    monkeypatch.setenv("HF_EDIT_CACHE", str(tmp_path / "there"))
    monkeypatch.setattr("hf_edit.statistics.store.collect", None)  # fails if it is called

    edits = tmp_path / "edits.jsonl"
    edits.write_text(json.dumps({"prompt": "Who made the lamp?", "target": "A fox."}) + "\n")
    settings = ("layers=[1]", "max_evaluations=1", "statistics.tokens=300", "statistics.conversations=0")
    command = ["apply", "--model", base, "--edits", edits, "--out", tmp_path / "pack", "--method", "anyedit"]
    command += ["--format", "plain", *(part for one in settings for part in ("--set", one))]
    failed(hf_edit(*command, "--set", "statistics.repo=me/none"), "no such repository", "leave out statistics.repo")
    result = hf_edit(*command, "--set", "statistics.repo=me/stats")
    assert result.exit_code == 0 and "statistics: from the Hub" in result.stderr
