"""`hf-edit train`, and its network in `apply`, `push` and `pull`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hf_edit.methods.msbp.hypernet import Hypernet
from hf_edit.packs.pack import EditPack
from tests.cli.conftest import Command, failed
from tests.loopback_hub import REAL_CLIENT, LoopbackHub, loopback_hub  # noqa: F401
from tests.methods.msbp.training_data import facts


pytestmark = [REAL_CLIENT, pytest.mark.filterwarnings("ignore::hf_edit.errors.HfEditWarning")]
QUICK = {"layers": [1, 2], "rank": 4, "blocks": 1, "batch": 4, "step_size": 0.3}


@pytest.fixture
def edits(tmp_path: Path) -> Path:
    facts(6).to_jsonl(tmp_path / "edits.jsonl")
    return tmp_path / "edits.jsonl"


@pytest.fixture
def quick(tmp_path: Path) -> Path:
    (tmp_path / "quick.json").write_text(json.dumps(QUICK))
    return tmp_path / "quick.json"


def test_from_facts_to_a_network_to_a_pack(
    hub: LoopbackHub, hf_edit: Command, base: Path, edits: Path, quick: Path, tmp_path: Path
) -> None:
    net = tmp_path / "net"
    options = ("--model", base, "--edits", edits, "--format", "plain")
    result = hf_edit("train", *options, "--out", net, "--method", "malmen", "--config", quick, "--json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["hypernet"] == str(net) and [record["batches"] for record in document["validation"]] == [0, 2]
    assert Hypernet.from_pretrained(net).manifest.method == "malmen"
    assert not (tmp_path / ".net.resume").exists()

    pushed = json.loads(hf_edit("push", net, "me/net", "--tag", "v1", "--json").stdout)
    assert pushed["repository"] == "me/net" and set(hub.files("me/net")) >= {"hypernet.json", "hypernet.safetensors"}
    pulled = json.loads(hf_edit("pull", "me/net", "--out", tmp_path / "copy", "--revision", "v1", "--json").stdout)
    assert (pulled["hypernet"], pulled["commit"]) == (str(tmp_path / "copy"), pushed["commit"])
    assert pulled["method"] == "malmen"

    for name, source in (("here", net), ("there", "me/net")):
        wanted = (*options, "--method", "malmen", "--hypernet", source, "--out", tmp_path / name, "--no-answers")
        result = hf_edit("apply", *wanted)
        assert result.exit_code == 0, result.output
    here, there = (EditPack.from_pretrained(tmp_path / name) for name in ("here", "there"))
    assert set(here.deltas) == {"model.layers.1.mlp.down_proj", "model.layers.2.mlp.down_proj"}
    assert all((here.deltas[name].B == there.deltas[name].B).all() for name in here.deltas)


def test_training_tells_people_what_it_measured(
    hf_edit: Command, base: Path, edits: Path, quick: Path, tmp_path: Path
) -> None:
    options = ("--model", base, "--edits", edits, "--validate", edits, "--out", tmp_path / "net", "--config", quick)
    result = hf_edit("train", *options, "--set", "epochs=2", "--seed", "3")
    assert result.exit_code == 0, result.output
    assert "6 edits in 4 batches" in result.stdout and "GS" in result.stdout
    made = Hypernet.from_pretrained(tmp_path / "net").manifest
    assert made.method == "emsedit" and made.config["seed"] == 3 and made.prompt_format.name == "chat"


def test_a_users_mistakes(hf_edit: Command, base: Path, edits: Path, quick: Path, pack: Path, tmp_path: Path) -> None:
    options = ("--model", base, "--edits", edits)
    failed(hf_edit("train", *options, "--out", pack), "is no hypernetwork")
    failed(hf_edit("train", *options, "--out", tmp_path / "n", "--method", "ultraedit"), "ultraedit", "emsedit")
    failed(hf_edit("train", *options, "--out", tmp_path / "n", "--set", "batch=0"), "batch = 0")
    failed(hf_edit("train", *options, "--out", tmp_path / "n", "--set", "layers=[9]"), "Layer 9")
    wanted = ("apply", *options, "--out", tmp_path / "p", "--no-answers")
    failed(hf_edit(*wanted, "--method", "ultraedit", "--hypernet", pack), "'hypernet' is no setting")
    failed(hf_edit(*wanted, "--method", "emsedit", "--hypernet", pack), "has no hypernet.json")
    assert hf_edit("train", *options, "--out", tmp_path / "net", "--config", quick).exit_code == 0
    failed(hf_edit("push", tmp_path / "net", "me/net", "--layout", "bf16"), "no subfolder, layout")
    failed(hf_edit(*wanted, "--method", "mend", "--hypernet", tmp_path / "net"), "trained for emsedit, not mend")
