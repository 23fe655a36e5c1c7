"""`edit()` from end to end on tiny models: what comes out, and that nothing is left behind."""

from __future__ import annotations

import copy
import multiprocessing
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import PreTrainedModel

import hf_edit
from hf_edit import AnyEditConfig, EditPack, EditSet, HfEditError
from hf_edit.edits import Edit
from hf_edit.errors import (
    ComputationError,
    ConfigError,
    HfEditWarning,
    InvalidEditError,
    StatisticsError,
    UnsupportedModelError,
)
from hf_edit.evaluation.answers import greedy_answers
from hf_edit.methods.polish.config import PolishConfig, PolishSettings
from hf_edit.methods.training.config import TrainingConfig
from hf_edit.models.editable import EditableModel
from hf_edit.prompting import PromptFormat
from hf_edit.statistics.config import StatisticsConfig
from tests.editing import CONFIG, EDITS, Listener, contents, learn_and_save, learned
from tests.packs.make import dense_logits, logits
from tests.snapshots import changed, snapshot
from tests.tiny import CORPUS, FAMILIES, VOCAB, tiny_model, tiny_tokenizer


ROOT = Path(__file__).parents[1]
pytestmark = [
    # random models learn little in few steps, and some never end a question
    pytest.mark.filterwarnings("ignore:.*(loss stayed above|invented no question):hf_edit.errors.HfEditWarning"),
    # PEFT asks transformers for the name that transformers has deprecated
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),
]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HF_EDIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def fast(tmp_path: Path) -> AnyEditConfig:
    """Statistics of a text, so that the model need not write one."""
    text = tmp_path / "text.txt"
    text.write_text("\n".join(CORPUS), encoding="utf-8")
    statistics = StatisticsConfig(text=str(text), tokens=240, conversations=0, length=12, batch=10)
    return AnyEditConfig(window=6, max_evaluations=4, statistics=statistics)


def with_settings(config: AnyEditConfig, **values: object) -> AnyEditConfig:
    return AnyEditConfig.from_mapping(config.to_json() | values)


def same_deltas(first: EditPack, second: EditPack) -> bool:
    return first.deltas.keys() == second.deltas.keys() and all(
        torch.equal(delta.B, second.deltas[name].B) and torch.equal(delta.A, second.deltas[name].A)
        for name, delta in first.deltas.items()
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_from_edit_to_plain_load_adapter(family: str, fast: AnyEditConfig, tmp_path: Path) -> None:
    model = tiny_model(family)
    before = snapshot(model)
    pack = hf_edit.edit(model, tiny_tokenizer(), EDITS, fast)
    assert changed(before, snapshot(model)) == []
    pack.save_pretrained(tmp_path / "pack")
    assert list(pack.deltas) == [EditableModel.of(model).linears[2].name]  # at 0.6 of four blocks
    assert pack.edits == EDITS

    base = logits(model)
    with EditableModel.of(model).updated(pack.deltas):
        expected = logits(model)
    assert (expected - base).abs().max() > 1e-2
    assert (dense_logits(model, pack.deltas) - expected).abs().max() <= 2e-5
    model.load_adapter(str(tmp_path / "pack"))
    assert (logits(model) - expected).abs().max() <= 2e-5


def test_the_answers_are_learned(fast: AnyEditConfig) -> None:
    """By a random model too, token by token and with next to nothing preserved."""
    model, teach, prompts = tiny_model(), EDITS[1], PromptFormat.of("chat", tiny_tokenizer())
    config = with_settings(fast, window=1, max_evaluations=60, clamp=8.0, preservation=1e-6)
    before = greedy_answers(model, prompts, [teach.prompt], max_new_tokens=20)
    pack = hf_edit.edit(model, tiny_tokenizer(), [teach], config)
    with EditableModel.of(model).updated(pack.deltas):
        assert greedy_answers(model, prompts, [teach.prompt], max_new_tokens=20) == [teach.target] != before


@pytest.mark.parametrize("name", ["chat", "plain", "qa"])
def test_every_format(name: str, fast: AnyEditConfig) -> None:
    """Formats without turns have no statistics of them; the default settings do with what there is."""
    pack = hf_edit.edit(tiny_model(), tiny_tokenizer(), EDITS, with_settings(fast, format=name))
    assert pack.manifest.prompt_format.name == name


def test_several_layers(fast: AnyEditConfig) -> None:
    pack = hf_edit.edit(tiny_model(), tiny_tokenizer(), EDITS, with_settings(fast, layers=[0, 2, 3]))
    assert list(pack.deltas) == [f"model.layers.{layer}.mlp.down_proj" for layer in (0, 2, 3)]


def test_progress_is_told(fast: AnyEditConfig) -> None:
    listener = Listener()
    pack = hf_edit.edit(tiny_model(), tiny_tokenizer(), EDITS, fast, progress=listener)
    chunks = sum(figures["chunks"] for figures in pack.manifest.receipt.values())
    assert listener.stages == [("statistics: moments", 20), ("targets", chunks)]
    assert listener.done == listener.computed == chunks > len(EDITS)


def test_edits_in_every_form(fast: AnyEditConfig, tmp_path: Path) -> None:
    EDITS.to_jsonl(tmp_path / "edits.jsonl")
    first = hf_edit.edit(tiny_model(), tiny_tokenizer(), EDITS, fast)
    for form in (list(EDITS), [e.to_json() for e in EDITS], tmp_path / "edits.jsonl", str(tmp_path / "edits.jsonl")):
        assert same_deltas(first, hf_edit.edit(tiny_model(), tiny_tokenizer(), form, fast))


# ---- the caller's model ----------------------------------------------------------------------------------------


def lived_in(model: PreTrainedModel) -> PreTrainedModel:
    """In training, partly frozen, with a gradient, a hook and a replaced forward."""
    model.train()
    blocks = model.get_submodule(EditableModel.of(model).family.blocks)
    blocks[0].eval()
    next(blocks[1].parameters()).requires_grad_(False)
    model.get_input_embeddings().weight.grad = torch.ones_like(model.get_input_embeddings().weight)
    blocks[1].register_forward_hook(lambda *_: None)
    own = blocks[3].forward
    blocks[3].forward = lambda *args, **kwargs: own(*args, **kwargs)
    return model


class Stopped(Exception):
    """Thrown by a listener or a hook."""


def raising(error: type[BaseException]) -> Callable[..., None]:
    def throw(*_: object) -> None:
        random.random()
        torch.rand(1)
        raise error

    return throw


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_the_model_is_as_it_was(family: str) -> None:
    """Also where the model writes its statistics itself."""
    model = lived_in(tiny_model(family))
    before = snapshot(model)
    hf_edit.edit(model, tiny_tokenizer(), EDITS, CONFIG)
    assert changed(before, snapshot(model)) == []


@pytest.mark.parametrize("error", [Stopped, KeyboardInterrupt])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_model_is_as_it_was_when_stopped_between_steps(family: str, error: type[BaseException]) -> None:
    model = lived_in(tiny_model(family))
    before = snapshot(model)
    with pytest.raises(error):
        hf_edit.edit(model, tiny_tokenizer(), EDITS, CONFIG, progress=Listener(3, raising(error)))
    assert changed(before, snapshot(model)) == []


@pytest.mark.parametrize("error", [Stopped, KeyboardInterrupt])
@pytest.mark.parametrize("call", [0, 3, 5, 12, 20, 30])
def test_the_model_is_as_it_was_when_stopped_inside_a_forward(
    call: int, error: type[BaseException], fast: AnyEditConfig
) -> None:
    """At the first look at the model, while collecting, in stage 1 and in stage 2; a trial may fail."""
    model = lived_in(tiny_model())
    calls = 0

    def hook(*_: object) -> None:
        nonlocal calls
        calls += 1
        if calls == call + 1:
            raising(error)()

    model.model.layers[2].mlp.register_forward_hook(hook)
    before = snapshot(model)
    with pytest.raises(error):
        hf_edit.edit(model, tiny_tokenizer(), EDITS, fast)
    assert calls == call + 1
    assert changed(before, snapshot(model)) == []


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_in_the_callers_mode(mode: type, fast: AnyEditConfig) -> None:
    model = tiny_model()
    before = snapshot(model)
    expected = hf_edit.edit(model, tiny_tokenizer(), EDITS, fast)
    with mode():
        pack = hf_edit.edit(model, tiny_tokenizer(), EDITS, fast)
    assert changed(before, snapshot(model)) == []
    assert same_deltas(pack, expected)
    assert not any(factor.is_inference() for delta in pack.deltas.values() for factor in (delta.A, delta.B))


def test_dropout_plays_no_part(fast: AnyEditConfig) -> None:
    model = tiny_model("gpt2").train()
    assert model.config.resid_pdrop > 0
    pack = hf_edit.edit(model, tiny_tokenizer(), EDITS, fast)
    assert model.training
    assert same_deltas(pack, hf_edit.edit(model.eval(), tiny_tokenizer(), EDITS, fast))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype, fast: AnyEditConfig, tmp_path: Path) -> None:
    model = tiny_model(dtype=dtype)
    before = snapshot(model)
    pack = hf_edit.edit(model, tiny_tokenizer(), EDITS, fast)
    assert changed(before, snapshot(model)) == []
    assert all(delta.B.dtype == torch.float32 for delta in pack.deltas.values())
    assert all(figures["worst_chunk_loss"] < 7 for figures in pack.manifest.receipt.values())  # ln 512 is 6.2
    pack.save_pretrained(tmp_path / "pack")
    base = logits(model)
    model.load_adapter(str(tmp_path / "pack"))
    assert (logits(model) - base).abs().max() > 1e-2
    assert (logits(model).float() - dense_logits(tiny_model(), pack.deltas)).abs().max() < 0.1


def test_on_top_of_a_users_adapter(fast: AnyEditConfig, tmp_path: Path) -> None:
    """The edit is learned with the adapter in place, and is a pack of the base all the same."""
    alone = hf_edit.edit(tiny_model(), tiny_tokenizer(), EDITS, fast)
    torch.manual_seed(3)
    lora = LoraConfig(r=2, target_modules=["down_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    model = get_peft_model(tiny_model(), lora)
    for parameter in model.parameters():
        parameter.data.mul_(1.0 if parameter.shape[0] > 2 else 0.3)
    before = snapshot(model)
    pack = hf_edit.edit(model, tiny_tokenizer(), EDITS, fast, resume_dir=tmp_path / "resume")
    assert changed(before, snapshot(model)) == []
    assert list(pack.deltas) == ["model.layers.2.mlp.down_proj"]
    assert not same_deltas(pack, alone)
    pack.verify(model)
    pack.verify(tiny_model())
    with model.disable_adapter():
        assert same_deltas(hf_edit.edit(model, tiny_tokenizer(), EDITS, fast, resume_dir=tmp_path / "resume"), alone)


# ---- the same bytes --------------------------------------------------------------------------------------------


def test_two_processes_write_the_same_bytes(tmp_path: Path) -> None:
    for seed in ("1", "2"):
        folders = [str(tmp_path / seed / name) for name in ("pack", "resume", "cache")]
        environment = os.environ | {"PYTHONHASHSEED": seed, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "tests.editing", *folders]
        subprocess.run(command, cwd=ROOT, env=environment, check=True)
    written = contents(tmp_path / "1" / "pack")
    assert len(written) >= 5
    assert written == contents(tmp_path / "2" / "pack")


def start(*arguments: object) -> multiprocessing.process.BaseProcess:
    """`learn_and_save` in a process forked from one that has imported everything and done nothing."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.editing"])
    process = context.Process(target=learn_and_save, args=arguments)
    process.start()
    return process


@pytest.fixture
def uninterrupted(tmp_path: Path) -> dict[str, str]:
    """What the pack of an undisturbed run holds."""
    learned().save_pretrained(tmp_path / "uninterrupted")
    return contents(tmp_path / "uninterrupted")


def test_a_killed_run_goes_on_where_it_was(tmp_path: Path, uninterrupted: dict[str, str]) -> None:
    out, resume, cache = (tmp_path / name for name in ("pack", "resume", "cache"))
    whole = Listener()
    pack = learned(progress=whole)
    first = pack.manifest.receipt["play"]["chunks"]
    process = start(out, resume, cache, first + 1)  # beyond the first edit
    process.join()
    assert process.exitcode == -9 and not out.exists()

    listener = Listener()
    learned(resume, listener).save_pretrained(out)
    assert contents(out) == uninterrupted
    assert listener.done == whole.done and 0 < listener.computed <= whole.computed - first
    again = Listener()
    learned(resume, again)
    assert again.computed == 0


def test_results_of_other_settings_are_not_taken_up(fast: AnyEditConfig, tmp_path: Path) -> None:
    def run(config: AnyEditConfig, model: PreTrainedModel) -> tuple[EditPack, int]:
        listener = Listener()
        pack = hf_edit.edit(model, tiny_tokenizer(), EDITS, config, resume_dir=tmp_path / "resume", progress=listener)
        return pack, listener.computed

    _, computed = run(fast, tiny_model())
    assert run(fast, tiny_model())[1] == 0
    other = with_settings(fast, learning_rate=0.2)
    for config, model in ((other, tiny_model()), (fast, tiny_model(seed=1))):
        pack, again = run(config, model)
        assert again == computed
        assert same_deltas(pack, hf_edit.edit(model, tiny_tokenizer(), EDITS, config))


def test_killed_at_random_moments_it_leaves_the_old_pack_or_the_new_one(
    tmp_path: Path, uninterrupted: dict[str, str], fast: AnyEditConfig
) -> None:
    folder = tmp_path / "packs"
    out, resume, cache = folder / "pack", tmp_path / "resume", tmp_path / "cache"
    older = hf_edit.edit(tiny_model(seed=5), tiny_tokenizer(), list(EDITS)[:1], fast)
    older.save_pretrained(out)
    old = contents(out)
    assert old != uninterrupted

    def run(fuse: tuple[str, float] | None = None) -> dict[str, float]:
        """From nothing to a pack, or to where the fuse ends it; when it began what."""
        for kept in (resume, cache):
            shutil.rmtree(kept, ignore_errors=True)
        receiver, sender = multiprocessing.Pipe(duplex=False)
        process = start(out, resume, cache, None, fuse, sender)
        sender.close()
        process.join()
        began = {}
        while receiver.poll():
            try:
                what, when = receiver.recv()
            except EOFError:
                break
            began[what] = when
        return began

    began = run()
    assert contents(out) == uninterrupted
    phases = {"editing": began["saved"] - began["editing"], "saving": began["saved"] - began["saving"]}
    moments = random.Random(0)
    unfinished = dict.fromkeys(phases, 0)
    for _ in range(10):
        for phase, seconds in phases.items():
            older.save_pretrained(out)
            unfinished[phase] += "saved" not in run((phase, moments.uniform(1e-6, seconds)))
            assert contents(out) in (old, uninterrupted)
    assert sum(unfinished.values()) >= 5
    run()
    assert contents(out) == uninterrupted
    assert [path.name for path in folder.iterdir()] == ["pack"]


# ---- bad input -------------------------------------------------------------------------------------------------


ONE = [{"prompt": "Who?", "target": "Me and you."}]


@pytest.mark.parametrize(
    ("edits", "error", "said"),
    [
        ([], InvalidEditError, "no edits"),
        (None, InvalidEditError, "null"),
        (7, InvalidEditError, "int"),
        ("no such file.jsonl", InvalidEditError, "no such file.jsonl"),
        ([{"prompt": "Who?", "target": " "}], InvalidEditError, "target is empty"),
        ([{"prompt": "", "target": "Me."}], InvalidEditError, "prompt is empty"),
        ([{"prompt": "Who?", "target": "Who?"}], InvalidEditError, "target equals the prompt"),
        ([*ONE, {"prompt": "Who?", "target": "They."}], InvalidEditError, "Who?"),
        ([{"prompt": "Who?", "target": "Me.", "colour": "red"}], InvalidEditError, "colour"),
        ([{"prompt": "Who?", "target": "fox " * 300}], InvalidEditError, "the model's context holds 256"),
        ([{"prompt": "Who? " * 300, "target": "Me."}], InvalidEditError, "the model's context holds 256"),
        ([{"prompt": "Who?", "target": "Me<|im_end|>you"}], InvalidEditError, "<|im_end|>"),
    ],
)
def test_edits_that_cannot_be_taught(edits: object, error: type[HfEditError], said: str, fast: AnyEditConfig) -> None:
    refused(tiny_model(), error, said, edits=edits, config=fast)


def refused(
    model: object,
    error: type[HfEditError],
    said: str,
    *,
    edits: object = ONE,
    config: object = None,
    tokenizer: object = None,
    resume: Path | None = None,
) -> None:
    """Assert a clear error with a remedy, and the model untouched."""
    before = snapshot(model) if isinstance(model, nn.Module) else {}
    with pytest.raises(error) as caught:
        hf_edit.edit(model, tokenizer or tiny_tokenizer(), edits, config, resume_dir=resume)  # type: ignore[arg-type]
    assert said in caught.value.message and caught.value.remedy
    if isinstance(model, nn.Module):
        assert changed(before, snapshot(model)) == []


@pytest.mark.parametrize("length", [255, 256, 257])
def test_an_edit_may_fill_the_context(length: int, fast: AnyEditConfig) -> None:
    prompts = PromptFormat.of("chat", tiny_tokenizer())
    target = "fox"
    while len(prompts.encode("Who?", target)) < length:
        target += " fox" if len(prompts.encode("Who?", target + " fox")) <= length else "x"
    assert len(prompts.encode("Who?", target)) == length
    teach = EditSet([Edit("Who?", target)])
    if length > 256:
        refused(tiny_model(), InvalidEditError, "takes 257 tokens", edits=teach, config=fast)
    else:
        hf_edit.edit(tiny_model(), tiny_tokenizer(), teach, with_settings(fast, max_evaluations=1, window=100))


@pytest.mark.parametrize(
    ("family", "settings", "error", "said"),
    [
        ("llama", {"layers": [4]}, ConfigError, "Layer 4 does not exist: the model has 4 blocks"),
        ("llama", {"layers": [1, 9]}, ConfigError, "Layer 9 does not exist"),
        ("gemma2", {"layers": [1, 2]}, ConfigError, "2 layers were given"),
        ("gemma3_text", {"layers": [1, 2]}, ConfigError, "2 layers were given"),
        ("llama", {"statistics": {"text": "no such text.txt"}}, StatisticsError, "no such text.txt"),
    ],
)
def test_settings_that_do_not_fit(family: str, settings: dict, error: type[HfEditError], said: str) -> None:
    refused(tiny_model(family), error, said, config=AnyEditConfig.from_mapping(settings))


def test_a_tokenizer_without_a_chat_template(fast: AnyEditConfig) -> None:
    tokenizer = tiny_tokenizer(chat_template=None)
    chat = with_settings(fast, format="chat")
    refused(tiny_model(), ConfigError, "no chat template", tokenizer=tokenizer, config=chat)
    assert hf_edit.edit(tiny_model(), tokenizer, ONE, fast).manifest.prompt_format.name == "plain"


def test_arguments_of_the_wrong_type(fast: AnyEditConfig, tmp_path: Path) -> None:
    refused(None, UnsupportedModelError, "NoneType", config=fast)
    refused("gpt2", UnsupportedModelError, "str", config=fast)
    refused(nn.Linear(2, 2), UnsupportedModelError, "Linear", config=fast)
    refused(tiny_model(), ConfigError, "dict", config={"window": 3})
    refused(tiny_model(), ConfigError, "str is not a transformers tokenizer", tokenizer="gpt2", config=fast)
    (tmp_path / "file").write_text("in the way")
    refused(tiny_model(), ConfigError, "cannot be kept", config=fast, resume=tmp_path / "file")


def test_a_tokenizer_with_more_tokens_than_the_model(fast: AnyEditConfig) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([f"word{i}" for i in range(VOCAB + 1 - len(tokenizer))])
    refused(
        tiny_model(), ConfigError, "token 512, and the model's embeddings end at 511", tokenizer=tokenizer, config=fast
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_model_of_damaged_weights(value: float, fast: AnyEditConfig) -> None:
    model = tiny_model()
    model.model.layers[1].mlp.up_proj.weight.data[0, 0] = value
    refused(model, ComputationError, "not finite", config=fast)


def test_a_loss_that_is_not_finite(fast: AnyEditConfig) -> None:
    """Only some tokens are damaged, so that the model as such looks sound."""
    model = tiny_model()
    tokenizer = tiny_tokenizer()
    lamp = tokenizer("Z", add_special_tokens=False)["input_ids"][0]
    model.model.embed_tokens.weight.data[lamp] = float("nan")
    refused(model, ComputationError, "not finite", edits=[{"prompt": "Z", "target": "Me."}], config=fast)


def test_missed_edits_are_named(fast: AnyEditConfig) -> None:
    with pytest.warns(HfEditWarning, match=r"3 of 3 edits .*: play, capital, fuji\. Raise"):
        hf_edit.edit(tiny_model(), tiny_tokenizer(), EDITS, with_settings(fast, max_evaluations=1))


def test_the_caller_keeps_the_edits_and_settings(fast: AnyEditConfig) -> None:
    edits = [edit.to_json() for edit in EDITS]
    before = copy.deepcopy(edits)
    hf_edit.edit(tiny_model(), tiny_tokenizer(), edits, fast)
    assert edits == before


def test_an_edit_taught_anew_is_not_held_to_its_earlier_answer(fast: AnyEditConfig) -> None:
    old = EditSet([Edit("Who wrote the play?", "A fox wrote it.", id="old"), EDITS[1]])
    new = [Edit("Who wrote the play?", "Nobody did.", id="new")]
    model = tiny_model()
    corrected = hf_edit.edit(model, tiny_tokenizer(), new, fast, earlier=old)
    beside = hf_edit.edit(model, tiny_tokenizer(), new, fast, earlier=EditSet([EDITS[1]]))
    assert all(torch.equal(delta.B, beside.deltas[name].B) for name, delta in corrected.deltas.items())
    assert corrected.manifest.earlier != beside.manifest.earlier


@pytest.mark.filterwarnings("ignore::hf_edit.errors.HfEditWarning")  # few steps teach little
def test_a_polished_pack_keeps_its_prompt_format(fast: AnyEditConfig) -> None:
    model, tokenizer = tiny_model(), tiny_tokenizer()
    pack = hf_edit.edit(model, tokenizer, EDITS[:1], replace(fast, format="plain"))
    config = PolishConfig(
        training=TrainingConfig(max_steps=1), conversations=2, strangers=0, statistics=fast.statistics
    )
    polished = hf_edit.polish(pack, model=model, tokenizer=tokenizer, config=config)
    assert polished.manifest.prompt_format == pack.manifest.prompt_format
    for other in (AnyEditConfig(), AnyEditConfig(backend="direct").direct):
        with pytest.raises(ConfigError, match=f"{type(other).__name__} are no settings of polish"):
            hf_edit.polish(pack, model=model, tokenizer=tokenizer, config=other)  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore::hf_edit.errors.HfEditWarning")  # few steps teach little
def test_apart_trained_edits_are_found_again_only_under_what_they_were_trained_on(
    fast: AnyEditConfig, tmp_path: Path
) -> None:
    direct = PolishSettings(
        training=TrainingConfig(max_steps=2), conversations=2, strangers=0, train_paraphrases=True, wordings=0
    )
    config = AnyEditConfig(backend="direct", together=1, direct=direct, statistics=fast.statistics)
    model, tokenizer = tiny_model(), tiny_tokenizer()
    packs = []
    for paraphrase, folder in (("Whose is it?", "a"), ("Who did it?", "a"), ("Who did it?", "b")):
        # of each edit its own: one that two share is trained for neither
        edits = [replace(edit, paraphrases=(f"{paraphrase} {edit.id}",)) for edit in EDITS[:2]]
        packs.append(hf_edit.edit(model, tokenizer, edits, config, resume_dir=tmp_path / folder))
    first, resumed, fresh = (pack.deltas[min(pack.deltas)].dense() for pack in packs)
    assert torch.equal(resumed, fresh) and not torch.equal(first, fresh)


def test_under_another_default_dtype(fast: AnyEditConfig) -> None:
    torch.set_default_dtype(torch.bfloat16)
    try:
        pack = hf_edit.edit(tiny_model(), tiny_tokenizer(), EDITS[:1], fast)
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(torch.isfinite(delta.B).all() for delta in pack.deltas.values())


def test_special_tokens_are_refused_where_no_context_is_known() -> None:
    edits = [Edit("Who?", "Bob<|im_end|>Al")]
    with pytest.raises(InvalidEditError, match="special token"):
        hf_edit.edit(tiny_model("mamba"), tiny_tokenizer(), edits)


def test_targets_of_a_batch_that_is_not_all_there_are_found_in_the_same_company(
    fast: AnyEditConfig, tmp_path: Path
) -> None:
    def computed() -> EditPack:
        return hf_edit.edit(tiny_model(), tiny_tokenizer(), EDITS, fast, resume_dir=tmp_path / "resume")

    whole = computed()
    files = sorted((tmp_path / "resume").iterdir())
    assert len(files) == len(EDITS)
    files[0].unlink()
    assert same_deltas(computed(), whole)
