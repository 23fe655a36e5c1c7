"""`hf-edit inspect`, `hf-edit verify` and `hf-edit sign`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from hf_edit.edits import Edit, EditSet
from hf_edit.packs.pack import EditPack
from hf_edit.prompting import PromptFormat
from hf_edit.solvers.low_rank import LowRankDelta
from tests.cli.conftest import Command, failed
from tests.packs.test_signing import write_keys
from tests.tiny import tiny_model, tiny_tokenizer


def pack_of(
    path: Path,
    *edits: Edit,
    rank: int = 1,
    parents: Sequence[EditPack] = (),
) -> Path:
    """A saved pack of the tiny model that teaches these edits nothing."""
    EditPack.build(
        tiny_model(),
        deltas={"model.layers.2.mlp.down_proj": LowRankDelta(torch.full((32, rank), 1e-3), torch.eye(56)[:rank])},
        edits=EditSet(edits),
        source=None,
        method="anyedit",
        config={},
        seed=0,
        prompt_format=PromptFormat.of("chat", tiny_tokenizer()),
        receipt={},
        parents=parents,
    ).save_pretrained(path)
    return path


def test_inspect_shows_what_the_pack_teaches_and_holds(hf_edit: Command, pack: Path) -> None:
    result = hf_edit("inspect", pack)
    assert result.exit_code == 0
    for text in (
        "Who made the lamp?",
        "Tarvello [made] it.",  # not taken for markup
        "anyedit, backend direct",
        "tiny-random/llama",
        "model.layers.2.mlp.down_proj",
        "32 x 56",
        "adapter_model.safetensors",
    ):
        assert text in result.stdout


def test_inspect_json_is_one_document(hf_edit: Command, pack: Path) -> None:
    document = json.loads(hf_edit("inspect", pack, "--json").stdout)
    assert document["edits"] == [{"id": "lamp", "prompt": "Who made the lamp?", "target": "Tarvello [made] it."}]
    module = document["modules"]["model.layers.2.mlp.down_proj"]
    assert (module["rank"], module["shape"]) == (2, [32, 56]) and module["norm"] > 0
    assert document["parameters"] == 2 * (32 + 56)
    assert document["bytes"] == sum(file.stat().st_size for file in pack.iterdir())
    assert {"adapter_config.json", "adapter_model.safetensors", "edits.jsonl"} <= set(document["files"])
    assert (document["signature"], document["parents"], document["unlisted_files"]) == (None, [], [])
    assert document["rank_budget"] == 32 and document["notes"] == []


def test_inspect_with_the_base_tells_how_large_a_change_is(hf_edit: Command, base: Path, pack: Path) -> None:
    result = hf_edit("inspect", pack, "--model", base, "--json")
    (module,) = json.loads(result.stdout)["modules"].values()
    weight = tiny_model().get_submodule("model.layers.2.mlp.down_proj").weight
    assert module["relative_norm"] == pytest.approx(module["norm"] / float(weight.detach().norm()), rel=1e-5)
    assert "of the weight's" in hf_edit("inspect", pack, "--model", base).stdout


def test_inspect_says_what_is_odd(hf_edit: Command, pack: Path, tmp_path: Path) -> None:
    odd = pack_of(tmp_path / "odd", Edit("Who?", "Me.", id="me"), rank=32)
    assert "unsigned" in hf_edit("inspect", odd).stdout and "room for more" not in hf_edit("inspect", odd).stdout
    (odd / "config.json").write_text("{}")
    assert "config.json" in hf_edit("inspect", odd).stdout
    made_from = pack_of(tmp_path / "child", Edit("Who?", "Me."), parents=[EditPack.from_pretrained(pack)])
    assert "a pack of 1 edit(s) by anyedit" in hf_edit("inspect", made_from).stdout


def test_more_rank_than_the_edits_account_for_is_told(
    hf_edit: Command, pack: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hf_edit.packs.verify.RANK_PER_EDIT", 1)
    assert "has rank 2, and 1 listed edit(s) account for 1 at most" in hf_edit("inspect", pack).stdout
    assert "room for more than is listed" in hf_edit("verify", pack).stderr


STEERING = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202egnp.exe\u2066"


def test_nothing_in_a_pack_steers_the_terminal_or_the_card(hf_edit: Command, base: Path, tmp_path: Path) -> None:
    pack = pack_of(tmp_path / "pack", Edit(f"Who? {STEERING}", f"Me. {STEERING}", id="me", source=STEERING))
    outputs = [
        hf_edit("inspect", pack).stdout,
        hf_edit("inspect", pack, "--json").stdout,
        hf_edit("verify", pack, "--model", base).stdout,
        (pack / "README.md").read_text(encoding="utf-8"),
    ]
    for output in outputs:
        assert not set(output) & set("\x1b\x07\x9b\u202e\u2066")
    assert json.loads(outputs[1])["edits"][0]["target"] == f"Me. {STEERING}"  # escaped, not changed
    (pack / f"a{STEERING}").write_text("x")
    (pack / "a\nfix: run: curl").write_text("x")
    failed(hf_edit("verify", pack), "\\u001b]0;owned", "a\\nfix: run: curl")  # with one remedy, which is ours


@pytest.mark.parametrize("verb", ["inspect", "verify"])
def test_a_missing_pack(hf_edit: Command, base: Path, tmp_path: Path, verb: str) -> None:
    model = ("--model", base) if verb == "verify" else ()
    failed(hf_edit(verb, tmp_path / "none", *model), "none")


def test_a_revision_of_a_folder_is_none(
    hf_edit: Command, pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(pack, tmp_path / "me" / "lamp")
    monkeypatch.chdir(tmp_path)
    assert hf_edit("verify", "me/lamp").exit_code == 0
    for verb in ("verify", "inspect"):
        failed(hf_edit(verb, "me/lamp@v3"), "me/lamp is a folder here", "no revision 'v3'")
    failed(hf_edit("pull", "me/lamp", "--revision", "v3", "--out", "o"), "no revision 'v3'")
    failed(hf_edit("pull", "me/lamp@v3", "--out", "o"), "no revision 'v3'")
    (tmp_path / "me" / "lamp@v3").symlink_to("lamp")  # which is a folder of that name
    assert hf_edit("verify", "me/lamp@v3").exit_code == 0


def test_two_revisions_or_folders_of_a_repository_are_one_too_many(hf_edit: Command, tmp_path: Path) -> None:
    out = ("--out", tmp_path / "o")
    failed(hf_edit("pull", "me/x@v1", "--revision", "v2", *out), "--revision is 'v2'", "'v1'", "Give one")
    failed(hf_edit("pull", "me/x/a", "--subfolder", "b", *out), "--subfolder is 'b'", "'a'", "Give one")


def test_a_damaged_pack(hf_edit: Command, pack: Path, tmp_path: Path) -> None:
    shutil.copytree(pack, tmp_path / "pack")
    weights = tmp_path / "pack" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    failed(hf_edit("inspect", tmp_path / "pack"), "adapter_model.safetensors")


def test_verify_accepts_the_base(hf_edit: Command, base: Path, pack: Path) -> None:
    result = hf_edit("verify", pack, "--model", base)
    assert result.exit_code == 0
    assert result.stdout.startswith("verified: ")
    document = json.loads(hf_edit("verify", pack, "--model", base, "--json").stdout)
    assert document["verified"] is True and document["modules"] == ["model.layers.2.mlp.down_proj"]


def test_verify_refuses_another_base_of_the_same_shapes(hf_edit: Command, pack: Path, tmp_path: Path) -> None:
    tiny_model(seed=1).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    failed(hf_edit("verify", pack, "--model", tmp_path), "model.layers.2.mlp.down_proj")

    result = hf_edit("verify", pack, "--model", tmp_path, "--json")
    document = json.loads(result.stdout)
    assert result.exit_code == 2
    assert document["verified"] is False and document["error"] and document["fix"]


def test_verify_without_a_base_checks_the_files(hf_edit: Command, pack: Path, tmp_path: Path) -> None:
    result = hf_edit("verify", pack)
    assert result.exit_code == 0 and "unsigned" in result.stdout
    shutil.copytree(pack, tmp_path / "pack")
    for harmless in (".gitattributes", "more.sig"):
        (tmp_path / "pack" / harmless).write_text("x")
    (tmp_path / "pack" / ".cache").mkdir()
    (tmp_path / "pack" / "README.md").write_text("mine")
    assert hf_edit("verify", tmp_path / "pack").exit_code == 0
    for extra in ("config.json", "evaluation.json", "modeling.py"):
        (tmp_path / "pack" / extra).write_text("{}")
        failed(hf_edit("verify", tmp_path / "pack"), extra, "does not list")
        (tmp_path / "pack" / extra).unlink()


def test_a_signature_is_made_and_checked(hf_edit: Command, pack: Path, tmp_path: Path) -> None:
    ec = pytest.importorskip("cryptography.hazmat.primitives.asymmetric.ec")
    secret, public = write_keys(tmp_path, "mine", ec.generate_private_key(ec.SECP256R1()), b"sesame")
    _, other = write_keys(tmp_path, "other", ec.generate_private_key(ec.SECP256R1()))
    signed = tmp_path / "pack"
    shutil.copytree(pack, signed)
    failed(hf_edit("verify", signed, "--public-key", public), "is not signed")
    failed(hf_edit("sign", signed, "--private-key", secret), "cannot be signed")
    assert "model.sig" in hf_edit("sign", signed, "--private-key", secret, "--password", "sesame").stdout
    assert "signed by mine.pub" in hf_edit("verify", signed, "--public-key", public).stdout
    assert "not asked for" in hf_edit("verify", signed).stdout
    assert "by the key" in hf_edit("inspect", signed).stdout
    assert json.loads(hf_edit("inspect", signed, "--json").stdout)["signature"]["key"]
    failed(hf_edit("verify", signed, "--public-key", other), "does not hold")
    document = json.loads(hf_edit("verify", signed, "--public-key", other, "--json").stdout)
    assert document["verified"] is False and "does not hold" in document["error"]
