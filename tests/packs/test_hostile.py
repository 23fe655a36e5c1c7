"""Hostile packs: each kind is refused with a reason, or does no harm; the model is the same bit for bit."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import stat
import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

import hf_edit
from hf_edit.errors import HfEditError, PackError
from hf_edit.packs.contents import ADAPTER, CARD, CONFIG, EDITS, EVALUATION, MANIFEST, VALUES
from hf_edit.packs.pack import EditPack
from hf_edit.solvers.low_rank import LowRankDelta
from tests.packs.hostile import Spoil, in_bytes, in_header, in_json, reseal, with_header
from tests.packs.make import make_pack, measured
from tests.snapshots import changed, snapshot
from tests.tiny import tiny_model


MODULE = "model.layers.1.mlp.down_proj"
WEIGHT = f"{MODULE}.weight"
A = f"base_model.model.{MODULE}.lora_A.weight"
B = f"base_model.model.{MODULE}.lora_B.weight"
DEEP = 5000
ESCAPE = "\x1b]0;owned\x07\x1b[2J\u202e\x9b31m"


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("healthy") / "pack"
    measured(make_pack(tiny_model())).save_pretrained(path)
    return path


def tensors(name: str, **changes: torch.Tensor) -> Spoil:
    def spoil(pack: Path) -> None:
        save_file({**load_file(pack / name), **changes}, pack / name)

    return spoil


def filled(name: str, tensor: str, value: float) -> Spoil:
    return lambda pack: tensors(name, **{tensor: load_file(pack / name)[tensor].fill_(value)})(pack)


def raw(name: str, text: str | bytes) -> Spoil:
    return in_bytes(name, lambda _: text if isinstance(text, bytes) else text.encode())


def twice(name: str, key: str, value: str) -> Spoil:
    """A key that stands twice in the outermost object."""
    return in_bytes(name, lambda data: b'{"' + key.encode() + b'": ' + value.encode() + b"," + data.lstrip()[1:])


def renamed_module(to: str) -> Spoil:
    """The pack says that it changes another module, and everything in it agrees."""

    def spoil(pack: Path) -> None:
        for name in (MANIFEST, CONFIG):
            (pack / name).write_text((pack / name).read_text().replace(MODULE, to))
        config = json.loads((pack / CONFIG).read_text())
        config["target_modules"].sort()
        (pack / CONFIG).write_text(json.dumps(config))
        for name in (ADAPTER, VALUES):
            save_file({key.replace(MODULE, to): t for key, t in load_file(pack / name).items()}, pack / name)

    return spoil


PLACED: dict[str, Callable[[Path, Path], object]] = {
    "a link": lambda path, moved: path.symlink_to(moved),
    "a relative link": lambda path, moved: path.symlink_to(f"../{moved.name}"),
    "a dangling link": lambda path, moved: path.symlink_to("nowhere"),
    "a link to itself": lambda path, moved: path.symlink_to(path.name),
    "a hard link": lambda path, moved: os.link(moved, path),
    "a pipe": lambda path, moved: os.mkfifo(path),
    "an endless device": lambda path, moved: path.symlink_to("/dev/zero"),
    "the memory of the process": lambda path, moved: path.symlink_to("/proc/self/mem"),
    "a folder": lambda path, moved: path.mkdir(),
}


def instead(name: str, what: str) -> Spoil:
    """Something else in the place of a file, which is moved out of the pack."""

    def spoil(pack: Path) -> None:
        moved = pack.parent / "elsewhere"
        shutil.move(pack / name, moved)
        PLACED[what](pack / name, moved)

    return spoil


def added(name: str, content: bytes = b"x") -> Spoil:
    def spoil(pack: Path) -> None:
        (pack / name).parent.mkdir(exist_ok=True)
        (pack / name).write_bytes(content)

    return spoil


def listed(name: str) -> Spoil:
    return in_json(MANIFEST, "files", name, value="0" * 64)


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch owned",)


def sparse_file(name: str, size: int) -> Spoil:
    return lambda pack: os.truncate(pack / name, size)


def huge_shape(pack: Path) -> None:
    """A manifest that announces an adapter of terabytes, and a file of that size without content."""
    in_json(MANIFEST, "base", "tensors", WEIGHT, "shape", value=[1 << 40, 1 << 40])(pack)
    os.truncate(pack / ADAPTER, 1 << 42)


def offsets(tensor: str, begin: int, end: int) -> Spoil:
    return in_header(ADAPTER, lambda header: header[tensor].update(data_offsets=[begin, end]))


def shape(tensor: str, *sizes: object) -> Spoil:
    return in_header(ADAPTER, lambda header: header[tensor].update(shape=list(sizes)))


def values_tensor(name: str, tensor: torch.Tensor) -> Spoil:
    return tensors(VALUES, **{name: tensor})


def edit_line(**fields: object) -> str:
    return json.dumps({"id": "x", "prompt": "Who?", "target": "Me.", **fields}) + "\n"


def second_edit(**fields: object) -> Spoil:
    return in_bytes(EDITS, lambda data: data.split(b"\n")[0] + b"\n" + edit_line(**fields).encode())


NESTED = "[" * DEEP + "]" * DEEP

REFUSED: dict[str, Spoil] = {
    # files
    "manifest missing": lambda pack: (pack / MANIFEST).unlink(),
    "manifest empty": raw(MANIFEST, ""),
    "adapter a link out": instead(ADAPTER, "a link"),
    "manifest a relative link out": instead(MANIFEST, "a relative link"),
    "edits a dangling link": instead(EDITS, "a dangling link"),
    "edits a link to themselves": instead(EDITS, "a link to itself"),
    "adapter a pipe": instead(ADAPTER, "a pipe"),
    "adapter an endless device": instead(ADAPTER, "an endless device"),
    "edits a folder": instead(EDITS, "a folder"),
    "config the memory of the process": instead(CONFIG, "the memory of the process"),
    "pickle beside": added("adapter_model.bin", pickle.dumps(Bomb())),
    "pickle in the adapter's place": raw(ADAPTER, pickle.dumps(Bomb())),
    "pickle under an ending in capitals": added("WEIGHTS.PKL", pickle.dumps(Bomb())),
    "numpy archive": added("values.npz", b"PK"),
    "terabytes announced and there": huge_shape,
    "oversized adapter": sparse_file(ADAPTER, 1 << 40),
    "oversized config": sparse_file(CONFIG, 1 << 30),
    "oversized manifest": sparse_file(MANIFEST, 1 << 30),
    "oversized evaluation": sparse_file(EVALUATION, 1 << 32),
    "listed above the folder": listed("../secret"),
    "listed absolutely": listed("/etc/passwd"),
    "listed in a subfolder": listed("sub/file"),
    "listed with NUL": listed("edits\0.jsonl"),
    "listed with a terminal's escape": listed(f"a{ESCAPE}"),
    "listed and of no pack": listed("config.json"),
    "adapter not listed": in_json(MANIFEST, "files", ADAPTER, drop=True),
    # JSON
    "key twice in the manifest": twice(MANIFEST, "seed", "1"),
    "key twice in the config": twice(CONFIG, "r", "1"),
    "key twice in an edit": raw(EDITS, '{"prompt": "a", "prompt": "b", "target": "c"}\n'),
    "brackets by the thousand in the manifest": in_bytes(
        MANIFEST, lambda data: data[:-3] + b', "x": ' + NESTED.encode() + b"}"
    ),
    "brackets by the thousand in the evaluation": raw(EVALUATION, '{"x": ' + NESTED + "}"),
    "brackets by the thousand in an edit": raw(EDITS, NESTED + "\n"),
    "parents inside parents": in_json(MANIFEST, "parents", value=json.loads("[" * 300 + "]" * 300)),
    "number of ten thousand digits": raw(EVALUATION, '{"x": ' + "9" * 10_000 + "}"),
    "number beyond a float": raw(EVALUATION, '{"x": 1e999}'),
    "NaN in JSON": raw(EVALUATION, '{"x": NaN}'),
    "half a character in JSON": raw(EVALUATION, '{"x": "\\ud800"}'),
    "config not UTF-8": raw(CONFIG, b'{"x": "\xff"}'),
    "config in UTF-16": in_bytes(CONFIG, lambda data: data.decode().encode("utf-16")),
    "manifest with a byte-order mark": in_bytes(MANIFEST, lambda data: b"\xef\xbb\xbf" + data),
    "manifest a list": raw(MANIFEST, "[]"),
    "evaluation a list": raw(EVALUATION, "[]"),
    # manifest
    "format of the future": in_json(MANIFEST, "format_version", value=99),
    "format true": in_json(MANIFEST, "format_version", value=True),
    "rank 0": in_json(MANIFEST, "modules", MODULE, "rank", value=0),
    "rank negative": in_json(MANIFEST, "modules", MODULE, "rank", value=-1),
    "rank true": in_json(MANIFEST, "modules", MODULE, "rank", value=True),
    "rank a fraction": in_json(MANIFEST, "modules", MODULE, "rank", value=1.5),
    "rank huge": in_json(MANIFEST, "modules", MODULE, "rank", value=10**300),
    "rank less than the factors": in_json(MANIFEST, "modules", MODULE, "rank", value=1),
    "shape huge": in_json(MANIFEST, "base", "tensors", WEIGHT, "shape", value=[10**300, 10**300]),
    "shape negative": in_json(MANIFEST, "base", "tensors", WEIGHT, "shape", value=[-32, -56]),
    "shape of three": in_json(MANIFEST, "base", "tensors", WEIGHT, "shape", value=[32, 56, 1]),
    "shape of other sides": in_json(MANIFEST, "base", "tensors", WEIGHT, "shape", value=[56, 32]),
    "module of no name": renamed_module(""),
    "module with a path": renamed_module("../../x"),
    "module a regular expression": renamed_module("model.layers.*.mlp"),
    "module with NUL": in_json(MANIFEST, "modules", "a\0b", value={"rank": 1, "orientation": "linear"}),
    "module not in the model": renamed_module("model.layers.99.mlp.down_proj"),
    "module the embeddings": renamed_module("model.embed_tokens"),
    "module a norm": renamed_module("model.norm"),
    "module the whole model": renamed_module("model"),
    "module undeclared": in_json(MANIFEST, "modules", MODULE, drop=True),
    "orientation false": in_json(MANIFEST, "modules", MODULE, "orientation", value="conv1d"),
    "other weights": in_json(
        MANIFEST,
        "base",
        "tensors",
        WEIGHT,
        "sha256",
        value=dict.fromkeys(("bfloat16", "float16", "float32"), "0" * 64),
    ),
    "weights of a wrong dtype's digest": in_json(
        MANIFEST, "base", "tensors", WEIGHT, "sha256", value={"float8": "0" * 64}
    ),
    "layout unknown": in_json(MANIFEST, "layout", value="pickle"),
    "base id a path": in_json(MANIFEST, "base", "id", value="../../evil"),
    "method with a terminal's escape": in_json(MANIFEST, "method", "name", value=ESCAPE),
    "count of edits false": in_json(MANIFEST, "edits", "count", value=3),
    # adapter_config.json
    "config with remote code": in_json(CONFIG, "auto_map", value={"AutoModel": "evil.Model"}),
    "config with an auto mapping": in_json(CONFIG, "auto_mapping", value={"base_model_class": "x"}),
    "config of another kind": in_json(CONFIG, "peft_type", value="PROMPT_TUNING"),
    "config with a regular expression": in_json(CONFIG, "target_modules", value=".*"),
    "config with every linear": in_json(CONFIG, "target_modules", value="all-linear"),
    "config that trains the head": in_json(CONFIG, "modules_to_save", value=["lm_head"]),
    "config with another scale": in_json(CONFIG, "lora_alpha", value=5000),
    "config with a scale per module": in_json(CONFIG, "alpha_pattern", value={".*": 5000}),
    "config with a scale by roots": in_json(CONFIG, "use_rslora", value=True),
    "config with DoRA": in_json(CONFIG, "use_dora", value=True),
    "config with biases": in_json(CONFIG, "bias", value="all"),
    "config with layers twice": in_json(CONFIG, "layer_replication", value=[[0, 4], [2, 4]]),
    "config with a runtime": in_json(CONFIG, "runtime_config", value={"ephemeral_gpu_offload": True}),
    "config with parameters": in_json(CONFIG, "target_parameters", value=["experts"]),
    "config with tokens": in_json(CONFIG, "trainable_token_indices", value=[1, 2]),
    "config of another base": in_json(CONFIG, "base_model_name_or_path", value="evil/base"),
    "config with a terminal's escape": in_json(CONFIG, ESCAPE, value=ESCAPE),
    "config with a rank of a fraction": in_json(CONFIG, "r", value=5.0),
    "config with a flag as a number": in_json(CONFIG, "fan_in_fan_out", value=0),
    # adapter_model.safetensors
    "adapter empty": raw(ADAPTER, b""),
    "adapter truncated": in_bytes(ADAPTER, lambda data: data[:-1]),
    "adapter with a tail": in_bytes(ADAPTER, lambda data: data + b"\0" * 8),
    "header longer than the file": in_bytes(ADAPTER, lambda data: struct.pack("<Q", len(data)) + data[8:]),
    "header of all bits": in_bytes(ADAPTER, lambda data: b"\xff" * 8 + data[8:]),
    "header empty": in_bytes(ADAPTER, lambda data: bytes(8) + data[8:]),
    "header a list": raw(ADAPTER, with_header(b"[]", b"")),
    "header not UTF-8": raw(ADAPTER, with_header(b'{"\xff": 1}', b"")),
    "header of a thousand brackets": raw(ADAPTER, with_header(b'{"a":' + NESTED.encode() + b"}", b"")),
    "tensor twice": in_bytes(
        ADAPTER,
        lambda data: with_header(
            b'{"x":{"dtype":"F32","shape":[0],"data_offsets":[0,0]},'
            b'"x":{"dtype":"F32","shape":[0],"data_offsets":[0,0]},'
            + data[9 : 8 + int.from_bytes(data[:8], "little")],
            data[8 + int.from_bytes(data[:8], "little") :],
        ),
    ),
    "tensor too many": tensors(ADAPTER, **{"base_model.model.lm_head.lora_A.weight": torch.ones(1, 32)}),
    "tensor missing": in_header(ADAPTER, lambda header: header.pop(A)),
    "tensor with an escape for a name": tensors(ADAPTER, **{ESCAPE: torch.ones(1)}),
    "offsets overlapping": offsets(A, 0, 5 * 56 * 4),
    "offsets backwards": offsets(A, 8, 0),
    "offsets beyond the file": offsets(A, 1 << 40, (1 << 40) + 5 * 56 * 4),
    "offsets of all bits": offsets(A, 2**64 - 1, 2**64 - 1),
    "shape overflowing": shape(A, 2**62, 2**62),
    "shape empty and endless": shape(A, 0, 2**63 - 1),
    "shape beyond an integer": shape(A, 0, 2**80),
    "shape with a fraction": shape(A, 5.0, 56),
    "shape with truth": shape(A, True, 280),
    "shape a number": in_header(ADAPTER, lambda header: header[A].update(shape=280)),
    "shape transposed": tensors(ADAPTER, **{A: torch.zeros(56, 5)}),
    "dtype of half a byte": in_header(ADAPTER, lambda header: header[A].update(dtype="F4")),
    "dtype of no tensor": in_header(ADAPTER, lambda header: header[A].update(dtype="PICKLE")),
    "dtype integer": tensors(ADAPTER, **{A: torch.zeros(5, 56, dtype=torch.int64)}),
    "dtype complex": tensors(ADAPTER, **{A: torch.zeros(5, 56, dtype=torch.complex64)}),
    "NaN": filled(ADAPTER, B, float("nan")),
    "infinity": filled(ADAPTER, A, float("inf")),
    "padding that is not zero": tensors(
        ADAPTER, **{"base_model.model.model.layers.0.mlp.down_proj.lora_A.weight": torch.ones(5, 56)}
    ),
    # edits.jsonl
    "edits empty": raw(EDITS, ""),
    "edits fewer": in_bytes(EDITS, lambda data: data.split(b"\n")[0] + b"\n"),
    "edits more": in_bytes(EDITS, lambda data: data + edit_line().encode()),
    "edits with a byte-order mark": in_bytes(EDITS, lambda data: b"\xef\xbb\xbf" + data),
    "edits not UTF-8": in_bytes(EDITS, lambda data: data + b"\xff\n"),
    "edits that are numbers": raw(EDITS, "1\n2\n"),
    "edits parted by carriage returns": in_bytes(EDITS, lambda data: data.replace(b"\n", b"\r")),
    "edit with an unknown field": second_edit(evil=1),
    "edit without an answer": second_edit(target=""),
    "edit with a list for an answer": second_edit(target=["x"]),
    "edit with an id that escapes": second_edit(id=ESCAPE),
    "edit with a message of no role": second_edit(prompt=[{"role": "tool", "content": "x"}]),
    "edit with half a character": second_edit(target="\ud800"),
    "edit twice": in_bytes(EDITS, lambda data: data.split(b"\n")[0] + b"\n" + data.split(b"\n")[0] + b"\n"),
    # values.safetensors
    "values of an edit that is not there": values_tensor(f"7.{MODULE}.values", torch.ones(1, 32)),
    "values without positions": values_tensor("0.x.values", torch.ones(1, 32)),
    "values of a module that is not changed": tensors(
        VALUES, **{"0.lm_head.values": torch.ones(1, 32), "0.lm_head.positions": torch.ones(1, dtype=torch.int64)}
    ),
    "an evaluation of nonsense": raw(EVALUATION, json.dumps({"exact": [[{}]], ESCAPE: ESCAPE})),
    "an evaluation of a later format": in_json(EVALUATION, "format_version", value=2),
    "an evaluation of other factors": in_json(EVALUATION, "pack", value="0" * 64),
    "an evaluation of no pack": in_json(EVALUATION, "pack", value=None),
    "a metric twice": in_json(EVALUATION, "metrics", 1, "name", value="reliability.exact"),
    "a metric whose name escapes": in_json(EVALUATION, "metrics", 0, "name", value=ESCAPE),
    "a metric without figures": in_json(EVALUATION, "metrics", 1, "after", value=None),
    "a protocol that nobody knows": in_json(EVALUATION, "metrics", 0, "protocol", value="word of honour"),
    "a figure that is a text": in_json(EVALUATION, "metrics", 0, "after", "value", value="1.0"),
    "a figure of no records": in_json(EVALUATION, "metrics", 0, "after", "n", value=0),
    "a figure of other records": in_json(EVALUATION, "metrics", 0, "after", "values", value=[1.0]),
    "half an interval": in_json(EVALUATION, "metrics", 0, "after", "low", value=None),
    "an answer to a number": in_json(EVALUATION, "generations", 0, "prompt", value=7),
    "values of another width": values_tensor(f"0.{MODULE}.values", torch.ones(2, 31)),
    "values that are numbers of things": values_tensor(f"0.{MODULE}.values", torch.ones(2, 32, dtype=torch.int32)),
    "values NaN": values_tensor(f"0.{MODULE}.values", torch.full((2, 32), torch.nan)),
    "positions negative": values_tensor(f"0.{MODULE}.positions", torch.tensor([-1, 0])),
    "positions with fractions": values_tensor(f"0.{MODULE}.positions", torch.tensor([0.5, 1.5])),
    "positions in a square": values_tensor(f"0.{MODULE}.positions", torch.ones(2, 2, dtype=torch.int64)),
}

HARMLESS: dict[str, Spoil] = {
    "a hard link, whose content is what the digest says": instead(ADAPTER, "a hard link"),
    "another file beside": added("notes.txt"),
    "a whole model's config beside": added("config.json", b'{"auto_map": {"AutoModel": "evil.Model"}}'),
    "code beside": added("modeling.py", b"raise SystemExit"),
    "a folder with a pickle": added("sub/x.pkl"),
    "a card with markup": raw(CARD, "<script>alert(1)</script>"),
    "a card that is no text": raw(CARD, b"\xff\xfe"),
    "a signature that is none": added("model.sig", b"{}"),
    "an executable file": lambda pack: (pack / ADAPTER).chmod(0o755 | stat.S_ISUID),
    "fields of a later version": in_json(MANIFEST, "later", value={"x": [1]}),
    "parents of no sense": in_json(MANIFEST, "parents", value=[None, 7, {"method": [], "edits": 3}, "x" * 1000]),
    "a receipt that escapes": in_json(MANIFEST, "receipt", value={ESCAPE: ESCAPE}),
    "a seed of three hundred digits": in_json(MANIFEST, "seed", value=10**300),
    "a version that escapes": in_json(MANIFEST, "versions", "peft_", value=ESCAPE),
    "an evaluation that escapes": lambda pack: [
        in_json(EVALUATION, *path, value=ESCAPE)(pack)
        for path in [("metrics", 0, "compared"), ("generations", 0, "after"), ("protocol", "format")]
    ],
    "an evaluation with fields of a later version": in_json(EVALUATION, "later", value={"x": [1]}),
    "edits with Windows's line ends": in_bytes(EDITS, lambda data: data.replace(b"\n", b"\r\n")),
    "edits with blank lines": in_bytes(EDITS, lambda data: data + b"\n\n"),
    "metadata in the header": in_header(
        ADAPTER, lambda header: header.update(__metadata__={"format": "pt", "code": "import os"})
    ),
    "positions beyond the text": values_tensor(f"0.{MODULE}.positions", torch.tensor([10**12, 10**12])),
}


NOT_RESEALED = {"key twice in the manifest", "manifest with a byte-order mark"}
"""What the one who deceives cannot write by way of JSON."""


def test_there_are_many_kinds() -> None:
    assert len(REFUSED) + len(HARMLESS) >= 150


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return tiny_model()


@pytest.mark.parametrize("kind", REFUSED)
def test_refused_and_the_model_is_the_same(kind: str, healthy: Path, tmp_path: Path, model: PreTrainedModel) -> None:
    pack = tmp_path / "pack"
    shutil.copytree(healthy, pack)
    REFUSED[kind](pack)
    if kind not in NOT_RESEALED:
        reseal(pack)
    before = snapshot(model)
    with pytest.raises(PackError) as caught:
        hf_edit.attach(model, pack)
    assert changed(before, snapshot(model)) == []
    message = str(caught.value)
    assert caught.value.remedy and len(message) < 5000 and not set(message) & set("\x1b\x07\x9b\u202e\0")
    assert set(os.listdir(tmp_path)) <= {"pack", "elsewhere"} and not Path("owned").exists()


@pytest.mark.parametrize("kind", HARMLESS)
def test_harmless_and_the_model_is_the_same(kind: str, healthy: Path, tmp_path: Path, model: PreTrainedModel) -> None:
    pack = tmp_path / "pack"
    shutil.copytree(healthy, pack)
    HARMLESS[kind](pack)
    reseal(pack, edits=json.loads((healthy / MANIFEST).read_bytes())["edits"])  # they are the same edits
    before = snapshot(model)
    hf_edit.detach(model, hf_edit.attach(model, pack))
    assert changed(before, snapshot(model)) == []
    with suppress(PackError):  # a card of it cannot always be written
        EditPack.from_pretrained(pack).save_pretrained(tmp_path / "again")
    assert not Path("owned").exists()


def test_a_change_of_the_head_is_an_ordinary_change(model: PreTrainedModel) -> None:
    """lm_head is a linear map: a pack may change it if it says so, comes off again, and an audit tells of it."""
    pack = make_pack(model, deltas={"lm_head": LowRankDelta(torch.full((512, 1), 1e-3), torch.ones(1, 32))})
    before = snapshot(model)
    hf_edit.detach(model, hf_edit.attach(model, pack))
    assert changed(before, snapshot(model)) == []


@pytest.mark.parametrize("sub", ["../pack", "/etc", "a/../../b", "a\\b", "a\0b", "linked"])
def test_subfolders_do_not_lead_out(sub: str, healthy: Path, tmp_path: Path) -> None:
    shutil.copytree(healthy, tmp_path / "outside")
    (tmp_path / "repo").mkdir()
    (tmp_path / "repo" / "linked").symlink_to(tmp_path / "outside")
    with pytest.raises(PackError, match="leads out"):
        EditPack.from_pretrained(tmp_path / "repo", subfolder=sub)


@pytest.mark.parametrize("name", ["a\0b", "\0", "x" * 5000, "a\n", "\ud800", "~root", "..", "CON", "-"])
def test_names_of_no_pack(name: str) -> None:
    with pytest.raises(HfEditError):
        EditPack.from_pretrained(name)
