"""Packs on disk: the same bytes, read back whole, and never anything else than what was written."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from hf_edit.errors import BaseMismatchError, PackError, UnsupportedModelError
from hf_edit.files import atomic, strict_json
from hf_edit.packs.contents import ADAPTER, CONFIG, EDITS, EVALUATION, FILES, MANIFEST, VALUES
from hf_edit.packs.manifest import LAYOUTS, sha256
from hf_edit.packs.pack import EditPack
from hf_edit.prompting import PromptFormat
from hf_edit.solvers.low_rank import LowRankDelta
from tests.packs.hostile import in_header
from tests.packs.make import EDITS as TAUGHT
from tests.packs.make import make_pack, measured, random_deltas, same_pack, sparse_deltas
from tests.tiny import FAMILIES, tiny_model, tiny_tokenizer


def saved(path: Path) -> dict[str, bytes]:
    return {entry.name: entry.read_bytes() for entry in path.iterdir()}


@pytest.mark.parametrize("family", FAMILIES)
def test_read_back_as_it_was(family: str, tmp_path: Path) -> None:
    model = tiny_model(family)
    pack = make_pack(model)
    pack.save_pretrained(tmp_path)
    assert sorted(saved(tmp_path)) == sorted(set(FILES) - {EVALUATION})
    read = EditPack.from_pretrained(tmp_path)
    assert same_pack(read, pack)
    read.verify(model)
    before = saved(tmp_path)
    read.save_pretrained(tmp_path)
    assert saved(tmp_path) == before


@pytest.mark.parametrize("layout", ["portable", "compact"])
def test_options(layout: str, tmp_path: Path) -> None:
    pack = measured(make_pack(tiny_model()))
    pack.save_pretrained(tmp_path, layout=layout, values=False)
    read = EditPack.from_pretrained(str(tmp_path))
    assert same_pack(read, replace(pack, source=None, manifest=replace(pack.manifest, layout=layout)))
    pack.save_pretrained(tmp_path)
    assert same_pack(EditPack.from_pretrained(tmp_path), pack)


def test_an_unknown_layout_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PackError, match="'sideways'.*portable, compact, bf16"):
        make_pack(tiny_model()).save_pretrained(tmp_path / "pack", layout="sideways")
    assert not (tmp_path / "pack").exists()


@pytest.mark.parametrize(
    ("limit", "most", "name"),
    [
        ("files.reading.MAX_HEADER_BYTES", 700, "tensors make a header"),
        ("packs.contents.MAX_TENSOR_BYTES", 500, ADAPTER),
        ("packs.contents.MAX_JSON_BYTES", 100, EDITS),
        ("packs.contents.MAX_JSON_BYTES", 1000, EVALUATION),
        ("packs.contents.MAX_CONFIG_BYTES", 1000, MANIFEST),
    ],
)
def test_what_would_not_be_read_is_not_saved(
    limit: str, most: int, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack = measured(make_pack(tiny_model()))
    pack.save_pretrained(tmp_path, values=False)
    before = saved(tmp_path)
    monkeypatch.setattr(f"hf_edit.{limit}", most)
    with pytest.raises(PackError, match=f"{name}.* more than the {most} that are read") as caught:
        pack.save_pretrained(tmp_path)
    assert "fewer edits" in caught.value.remedy and saved(tmp_path) == before


def test_values_with_a_header_beyond_their_edits_are_refused(tmp_path: Path) -> None:
    make_pack(tiny_model()).save_pretrained(tmp_path)
    for name in (ADAPTER, VALUES):
        shutil.copytree(tmp_path, tmp_path.with_name(name))
        in_header(name, lambda header: header.update(__metadata__={"x": "y" * (2 << 20)}))(tmp_path.with_name(name))
        reseal(tmp_path.with_name(name))
        with pytest.raises(PackError, match=f"{name} .* more than"):
            EditPack.from_pretrained(tmp_path.with_name(name))


def test_a_pack_in_a_subfolder(tmp_path: Path) -> None:
    pack = make_pack(tiny_model())
    pack.save_pretrained(tmp_path / "packs" / "one")
    assert same_pack(EditPack.from_pretrained(tmp_path, subfolder="packs/one"), pack)
    for escape in ("../elsewhere", "packs/../..", str(tmp_path)):
        with pytest.raises(PackError, match="leads out"):
            EditPack.from_pretrained(tmp_path, subfolder=escape)


def test_the_folder_of_a_local_base_is_kept_out_of_manifest_and_card(tmp_path: Path) -> None:
    model = tiny_model()
    model.config._name_or_path = str(tmp_path)
    pack = make_pack(model)
    pack.save_pretrained(tmp_path / "pack")
    naming = [name for name, data in saved(tmp_path / "pack").items() if str(tmp_path).encode() in data]
    assert naming == [CONFIG]
    read = EditPack.from_pretrained(tmp_path / "pack")
    assert read.base == read.base_path == str(tmp_path)


def save_in_every_layout(path: Path) -> None:
    for family in ("llama", "gpt2"):
        model = tiny_model(family)
        for layout in LAYOUTS:  # the deltas are such as every layout takes
            pack = make_pack(model, deltas=sparse_deltas(model, (2, 7, 3)), seed=3).with_all_layers(model)
            pack.save_pretrained(path / f"{family}-{layout}", layout=layout)


def test_another_process_writes_the_same_bytes(tmp_path: Path) -> None:
    script = "import sys; from tests.packs.test_pack import *; save_in_every_layout(Path(sys.argv[1]))"
    seed = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"
    environment = {**os.environ, "PYTHONHASHSEED": seed}
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "there")], env=environment, check=True)
    save_in_every_layout(tmp_path / "here")
    names = sorted(os.listdir(tmp_path / "here"))
    assert len(names) == 2 * len(LAYOUTS)
    for name in names:
        assert saved(tmp_path / "here" / name) == saved(tmp_path / "there" / name)


def save_for_ever(target: str, ready: Event, sources: list[str], exchange: bool) -> None:
    """Save two packs in turns until killed."""
    if not exchange:
        atomic._exchange = lambda first, second: False
    packs = [EditPack.from_pretrained(source) for source in sources]
    ready.set()
    while True:
        for pack in packs:
            pack.save_pretrained(target)


@pytest.mark.parametrize("exchange", [True, False])
def test_killed_at_any_moment_the_old_pack_or_the_new_one_is_there(exchange: bool, tmp_path: Path) -> None:
    sources = [str(tmp_path / name) for name in ("one", "two")]
    for seed, source in enumerate(sources):
        make_pack(tiny_model(), seed=seed).save_pretrained(source)
    either = [saved(Path(source)) for source in sources]
    target = tmp_path / "out" / "pack"
    shutil.copytree(sources[0], target)
    context = multiprocessing.get_context("forkserver")  # imports once, so that each kill costs milliseconds
    context.set_forkserver_preload(["hf_edit.packs.pack", "tests.packs.test_pack"])
    moments, leftovers, seen = random.Random(0), 0, set()
    for kills in range(1, 201):
        ready = context.Event()
        process = context.Process(target=save_for_ever, args=(str(target), ready, sources, exchange))
        process.start()
        assert ready.wait(60)
        time.sleep(moments.uniform(0, 0.15))
        process.kill()
        process.join()
        assert target.exists() or not exchange
        leftovers += len(os.listdir(target.parent)) > 1
        EditPack.from_pretrained(target)
        seen.add(either.index(saved(target)))
        if kills >= 20 and leftovers and len(seen) == 2:  # the kills did fall into saves
            break
    else:
        pytest.fail(f"No kill of {kills} fell into a save: {leftovers} left something, packs seen: {seen}.")
    EditPack.from_pretrained(sources[0]).save_pretrained(target)
    assert os.listdir(target.parent) == ["pack"]


def edit_json(name: str, key: str, value: object) -> Callable[[Path], None]:
    def spoil(pack: Path) -> None:
        content = json.loads((pack / name).read_bytes())
        content[key] = value
        (pack / name).write_bytes(strict_json.dumps(content))

    return spoil


def edit_tensors(name: str, change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def spoil(pack: Path) -> None:
        tensors = load_file(pack / name)
        change(tensors)
        save_file(tensors, pack / name)

    return spoil


def reseal(pack: Path) -> None:
    """Make all digests right again, as one would who wants to deceive."""
    manifest = json.loads((pack / MANIFEST).read_bytes())
    manifest["files"] = {name: sha256((pack / name).read_bytes()) for name in manifest["files"]}
    manifest["edits"]["sha256"] = manifest["files"][EDITS]
    del manifest["digest"]
    (pack / MANIFEST).write_bytes(strict_json.dumps({**manifest, "digest": sha256(strict_json.dumps(manifest))}))


def replace_with_link(pack: Path) -> None:
    shutil.move(pack / ADAPTER, pack.parent / "elsewhere")
    (pack / ADAPTER).symlink_to(pack.parent / "elsewhere")


def add_pickle(pack: Path) -> None:
    (pack / "adapter_model.bin").write_bytes(b"cos\nsystem\n(S'false'\ntR.")


def truncate(pack: Path) -> None:
    data = (pack / ADAPTER).read_bytes()
    (pack / ADAPTER).write_bytes(data[: len(data) // 2])


def make_oversized(pack: Path) -> None:
    os.truncate(pack / ADAPTER, 1 << 40)  # a sparse file


FACTOR = "base_model.model.model.layers.1.mlp.down_proj.lora_B.weight"
BAD = {
    "no manifest": (lambda pack: (pack / MANIFEST).unlink(), f"has no {MANIFEST}"),
    "no adapter": (lambda pack: (pack / ADAPTER).unlink(), f"has no {ADAPTER}"),
    "no values": (lambda pack: (pack / VALUES).unlink(), f"has no {VALUES}"),
    "future format": (edit_json(MANIFEST, "format_version", 9), "format version 9"),
    "unsealed change": (edit_json(CONFIG, "r", 6), "was altered"),
    "rank": (edit_json(CONFIG, "r", 6), "r is 6, but edit_pack.json implies 5"),
    "scale": (edit_json(CONFIG, "lora_alpha", 50), "lora_alpha is 50"),
    "kind": (edit_json(CONFIG, "peft_type", "IA3"), "peft_type is 'IA3'"),
    "modules": (edit_json(CONFIG, "target_modules", ["lm_head"]), "target_modules is"),
    "unknown option": (edit_json(CONFIG, "modules_to_save", ["lm_head"]), "modules_to_save is"),
    "another base": (edit_json(CONFIG, "base_model_name_or_path", "evil/base"), "base_model_name_or_path is"),
    "base of no text": (edit_json(CONFIG, "base_model_name_or_path", 3), "not a text"),
    "NaN": (edit_tensors(ADAPTER, lambda t: t[FACTOR].fill_(torch.nan)), "NaN or infinity"),
    "infinity": (edit_tensors(ADAPTER, lambda t: t[FACTOR][0, 0].fill_(torch.inf)), "NaN or infinity"),
    "extra tensor": (edit_tensors(ADAPTER, lambda t: t.update(x=torch.ones(1))), "extra tensor x"),
    "missing tensor": (edit_tensors(ADAPTER, lambda t: t.pop(FACTOR)), "lacks tensor"),
    "shape": (edit_tensors(ADAPTER, lambda t: t.update({FACTOR: t[FACTOR].T.contiguous()})), r"\(5, 32\)"),
    "NaN in values": (
        edit_tensors(VALUES, lambda t: [v.fill_(torch.nan) for k, v in t.items() if "val" in k]),
        "finite",
    ),
    "extra values": (edit_tensors(VALUES, lambda t: t.update(x=torch.ones(1))), "belongs to none"),
    "truncated": (truncate, "not a sound"),
    "oversized": (make_oversized, r"bytes, more than"),
    "pickle": (add_pickle, "adapter_model.bin"),
    "link": (replace_with_link, "symbolic link"),
    "edits": (lambda pack: (pack / EDITS).write_text('{"prompt": "a"}\n'), f"{EDITS}: "),
    "fewer edits": (
        lambda pack: (pack / EDITS).write_text('{"prompt":"a","target":"b"}\n'),
        "1 edits listed|none of 1",
    ),
    "edits in bytes": (lambda pack: (pack / EDITS).write_bytes(b"\xff"), "not UTF-8"),
}
UNSEALED = {"no manifest", "no adapter", "no values", "future format", "unsealed change", "oversized"}


@pytest.mark.parametrize("what", BAD)
def test_bad_packs_are_refused_with_a_reason(what: str, tmp_path: Path) -> None:
    make_pack(tiny_model()).save_pretrained(tmp_path / "pack")
    spoil, message = BAD[what]
    spoil(tmp_path / "pack")
    if what not in UNSEALED:
        reseal(tmp_path / "pack")
    with pytest.raises(PackError, match=message) as caught:
        EditPack.from_pretrained(tmp_path / "pack")
    assert caught.value.remedy


@pytest.mark.parametrize("listed", ["../../secret", "notes.txt"])
def test_files_that_belong_to_no_pack_are_never_opened(listed: str, tmp_path: Path) -> None:
    pack = tmp_path / "deep" / "pack"
    make_pack(tiny_model()).save_pretrained(pack)
    (pack / listed).write_text("x")
    manifest = json.loads((pack / MANIFEST).read_bytes())
    manifest["files"][listed] = "0" * 64
    (pack / MANIFEST).write_bytes(strict_json.dumps(manifest))
    reseal(pack)
    with pytest.raises(PackError, match="not a plain file name|belongs to no pack"):
        EditPack.from_pretrained(pack)


def test_the_card_may_be_edited_and_other_files_be_added(tmp_path: Path) -> None:
    pack = make_pack(tiny_model())
    pack.save_pretrained(tmp_path)
    (tmp_path / "README.md").write_text("mine")
    (tmp_path / "notes.txt").write_text("mine")
    assert same_pack(EditPack.from_pretrained(tmp_path), pack)


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> tuple[EditPack, Path]:
    path = tmp_path_factory.mktemp("healthy") / "pack"
    pack = measured(make_pack(tiny_model(), (1, 2)))
    pack.save_pretrained(path)
    return EditPack.from_pretrained(path), path


@settings(deadline=None, max_examples=150)
@given(st.sampled_from(FILES), st.floats(0, 1, exclude_max=True), st.integers(1, 255), st.booleans(), st.booleans())
def test_damage_gives_an_error_or_the_same_pack(
    healthy: tuple[EditPack, Path], name: str, place: float, bits: int, truncated: bool, resealed: bool
) -> None:
    pack, path = healthy
    damaged = path.parent / "damaged"
    shutil.rmtree(damaged, ignore_errors=True)
    shutil.copytree(path, damaged)
    data = (path / name).read_bytes()
    at = int(place * len(data))
    (damaged / name).write_bytes(data[:at] if truncated else data[:at] + bytes([data[at] ^ bits]) + data[at + 1 :])
    hostile = resealed and name != MANIFEST
    if hostile:
        reseal(damaged)
    try:
        read = EditPack.from_pretrained(damaged)
    except PackError as error:
        assert error.remedy
    else:
        assert hostile or same_pack(read, pack)


def test_updates_that_make_no_pack() -> None:
    model = tiny_model()
    name = "model.layers.0.mlp.down_proj"
    with pytest.raises(PackError, match="without a change"):
        make_pack(model, deltas={})
    with pytest.raises(PackError, match="rank 0"):
        make_pack(model, deltas={name: LowRankDelta(torch.zeros(32, 0), torch.zeros(0, 56))})
    with pytest.raises(PackError, match="NaN"):
        make_pack(model, deltas={name: LowRankDelta(torch.full((32, 1), torch.nan), torch.ones(1, 56))})
    with pytest.raises(PackError, match=r"shape and rank \(31, 56, 1\), declared \(32, 56, 1\)"):
        make_pack(model, deltas={name: LowRankDelta(torch.ones(31, 1), torch.ones(1, 56))})
    with pytest.raises(UnsupportedModelError, match="no map model.nothing"):
        make_pack(model, deltas={"model.nothing": LowRankDelta(torch.ones(32, 1), torch.ones(1, 56))})


def test_more_columns_than_the_matrix_has_are_folded(tmp_path: Path) -> None:
    model = tiny_model()
    deltas = random_deltas(model, (40,))
    pack = make_pack(model, deltas=deltas)
    (name,) = deltas
    assert pack.deltas[name].rank == 32
    assert (pack.deltas[name].dense() - deltas[name].dense()).norm() < 1e-5 * deltas[name].dense().norm()
    pack.save_pretrained(tmp_path)
    assert same_pack(EditPack.from_pretrained(tmp_path), pack)


def test_a_pack_spoilt_in_memory_is_not_saved(tmp_path: Path) -> None:
    pack = make_pack(tiny_model())
    pack.save_pretrained(tmp_path / "pack")
    before = saved(tmp_path / "pack")
    next(iter(pack.deltas.values())).A[0, 0] = torch.inf
    with pytest.raises(PackError, match="NaN or infinity"):
        pack.save_pretrained(tmp_path / "pack")
    assert saved(tmp_path / "pack") == before
    with pytest.raises(PackError, match="edits listed"):
        replace(make_pack(tiny_model()), edits=pack.edits[:1]).save_pretrained(tmp_path / "pack")
    assert saved(tmp_path / "pack") == before


def test_verify_knows_the_base_in_other_dtypes_and_no_other_base() -> None:
    pack = make_pack(tiny_model())
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        pack.verify(tiny_model(dtype=dtype))
    with pytest.raises(BaseMismatchError, match="other values.*tiny-random/llama"):
        pack.verify(tiny_model(seed=1))
    with pytest.raises(BaseMismatchError, match="no module"):
        pack.verify(tiny_model("gpt2"))
    pack.verify(tiny_model(seed=1), weights=False)


@pytest.mark.parametrize("nothing", ["no/such/folder", "./none", "/none", "-bad-", "file"])
def test_what_is_not_there(nothing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(PackError) as caught:
        EditPack.from_pretrained(nothing)
    assert nothing in caught.value.message and caught.value.remedy


def test_a_missing_folder_given_as_a_path_is_never_looked_for_on_the_hub(tmp_path: Path) -> None:
    with pytest.raises(PackError, match="not a folder"):
        EditPack.from_pretrained(tmp_path / "none")


def test_from_the_hubs_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A snapshot whose files are links to blobs, as the Hub's client lays it out."""
    repository = tmp_path / "models--me--pack"
    snapshot = repository / "snapshots" / "0123"
    pack = make_pack(tiny_model())
    pack.save_pretrained(repository / "blobs")
    (snapshot / "sub").mkdir(parents=True)
    for name in os.listdir(repository / "blobs"):
        (snapshot / "sub" / name).symlink_to(f"../../../blobs/{name}")
    asked: dict[str, object] = {}

    def download(repo_id: str, **options: object) -> str:
        asked.update(options, repo_id=repo_id)
        return str(snapshot)

    monkeypatch.setattr("hf_edit.hub.fetch.snapshot_download", download)
    read = EditPack.from_pretrained("me/pack", revision="v1", subfolder="sub", token="t", cache_dir=tmp_path)
    assert same_pack(read, pack)
    patterns = asked.pop("allow_patterns")
    assert asked == {"repo_id": "me/pack", "revision": "v1", "token": "t", "cache_dir": tmp_path}
    assert patterns == [*(f"sub/{name}" for name in (*FILES, "*.sig")), "config.json"]


def test_a_folder_is_as_good_as_its_pack(tmp_path: Path) -> None:
    pack = make_pack(tiny_model())
    pack.save_pretrained(tmp_path / "pack")
    assert same_pack(EditPack.coerce(tmp_path / "pack"), pack) and EditPack.coerce(pack) is pack
    with pytest.raises(PackError, match="int is no pack"):
        EditPack.coerce(3)  # type: ignore[arg-type]
    assert repr(pack) == "EditPack(2 edit(s): capital, bridge; anyedit; 3 module(s))"


def test_what_was_taught_before_is_named(tmp_path: Path) -> None:
    model, first = tiny_model(), make_pack(tiny_model())
    parts = {name: getattr(first, name) for name in ("deltas", "source")}
    build = partial(
        EditPack.build,
        model,
        **parts,
        edits=first.edits,
        method="anyedit",
        config={},
        seed=0,
        prompt_format=PromptFormat.of("chat", tiny_tokenizer()),
        receipt={},
    )
    second = build(earlier=[first, TAUGHT])
    assert second.manifest.earlier[0] == first.manifest.identity() and len(second.manifest.earlier) == 2
    second.save_pretrained(tmp_path / "pack")
    assert EditPack.from_pretrained(tmp_path / "pack").manifest.earlier == second.manifest.earlier
    assert b"earlier" not in build().manifest.to_bytes()
