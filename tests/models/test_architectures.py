"""Architectures that differ in how they are built: from `edit()` to plain `load_adapter`, and the view on them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from accelerate import dispatch_model
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText, Gemma3Config, PreTrainedModel

import hf_edit
from hf_edit import Edit, MemitConfig
from hf_edit.models.editable import EditableModel
from hf_edit.models.finder import find_family
from hf_edit.models.generation import continuations
from hf_edit.prompting import PromptFormat
from hf_edit.statistics.config import StatisticsConfig
from tests.packs.make import dense_logits, logits
from tests.snapshots import changed, snapshot
from tests.tiny import FAMILIES, OTHERS, VOCAB, tiny_model, tiny_tokenizer


IDS = torch.arange(2, 42).reshape(2, 20) * 37 % VOCAB
EDITS = [Edit("Who wrote the play?", "Tarvello wrote it.", id="play", subject="play")]
ASKED = torch.tensor([PromptFormat.of("chat", tiny_tokenizer()).encode(EDITS[0].prompt, EDITS[0].target).ids])
CONFIG = MemitConfig(
    layers=(1,),
    prefixes=1,
    prefix_tokens=3,
    max_evaluations=10,
    learning_rate=0.1,
    statistics=StatisticsConfig(tokens=120, conversations=2, answer_tokens=3, length=12),
)
EDITED = {
    "bart": ("fc2",),
    "mixtral": ("self_attn.o_proj",),
    "deepseek_v3": ("self_attn.o_proj",),  # PEFT takes down_proj of its dense and shared maps for the experts'
    "mamba": ("mixer.in_proj",),  # PEFT refuses out_proj
    "jamba": ("feed_forward.down_proj",),
    "gpt_oss": ("self_attn.o_proj",),
    "jetmoe": ("mlp.output_linear.weight",),  # no linear writes to the stream
    "rwkv": ("feed_forward.value",),  # what runs last, receptance, is a gate on it
    "qwen3_5_text": ("mlp.down_proj",),
    "gemma3n_text": ("mlp.down_proj",),
}
ATTENTION_ONLY = {"bart", "mixtral", "gpt_oss", "jetmoe", "deepseek_v3", "gemma3n_text"}


# what the targets stay above is of no interest here
pytestmark = pytest.mark.filterwarnings("ignore::hf_edit.errors.HfEditWarning")


@torch.no_grad()
def plain(model: nn.Module, ids: Tensor = IDS) -> Tensor:
    return model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits


@pytest.mark.parametrize("family", OTHERS)
def test_what_is_edited(family: str) -> None:
    assert find_family(tiny_model(family)).mlp_out[: len(EDITED[family])] == EDITED[family]


@pytest.mark.parametrize("family", OTHERS)
def test_an_edit_opens_with_plain_transformers(family: str, tmp_path: Path) -> None:
    model = tiny_model(family)
    before = snapshot(model)
    pack = hf_edit.edit(model, tiny_tokenizer(), EDITS, CONFIG)
    assert changed(before, snapshot(model)) == []
    pack.save_pretrained(tmp_path / "pack")
    base = logits(model, ASKED)
    model.load_adapter(str(tmp_path / "pack"))
    moved = (logits(model, ASKED) - base).abs().max()
    assert moved > 1e-3
    assert (logits(model, ASKED) - dense_logits(tiny_model(family), pack.deltas, ids=ASKED)).abs().max() < 1e-3 * moved


@pytest.mark.parametrize("family", OTHERS)
def test_text_behind_a_prefix_is_as_in_the_whole(family: str) -> None:
    """From attention states where they say all, else from the tokens; with a change in the prefix, and padding."""
    view = EditableModel.of(tiny_model(family))
    assert view.keeps_states == (family in ATTENTION_ONLY)
    layer = 2
    states = view.trace(IDS, entering=[layer]).entering[layer]
    linear = view.linears[layer]
    shift = torch.zeros(2, 20, linear.d_out)
    shift[:, 4] = torch.linspace(-1, 1, linear.d_out)
    mask = torch.ones_like(IDS)
    mask[1, :2] = 0
    with torch.no_grad():
        rows = [(IDS[:1], states[:1], shift[:1]), (IDS[1:, 2:], states[1:, 2:], shift[1:, 2:])]
        whole = [view.logits(ids, start={layer: s}, shift=(linear, d))[0, -11:] for ids, s, d in rows]
        prefix = view.extended(
            view.no_prefix(layer),
            IDS[:, :9],
            start={layer: states[:, :9]},
            shift=(linear, shift[:, :9]),
            mask=mask[:, :9],
        )
        assert prefix.length == 9
        where = torch.ones(2, 11, dtype=torch.bool)
        where[0, 3] = False
        found = view.logits_at(IDS[:, 9:], where, start={layer: states[:, 9:]}, prefix=prefix, mask=mask)
        first = view.logits(IDS[:1, 9:], start={layer: states[:1, 9:]}, prefix=prefix.rows(torch.tensor([0])))
        untouched = view.logits(IDS[:1], start={layer: states[:1]})[0, -11:]
    assert (first[0] - whole[0]).abs().max() < 1e-4
    assert (found - torch.cat(whole)[where.reshape(-1)]).abs().max() < 1e-4
    assert (whole[0] - untouched).abs().max() > 2e-4  # the change does reach later tokens


@pytest.mark.parametrize("family", OTHERS)
def test_what_it_writes_needs_no_cache_to_be_right(family: str) -> None:
    model = tiny_model(family)
    rows = [[7, 8], [40, 41, 42, 43, 44, 45], [9, 200, 10]]
    alone = []
    for row in rows:
        text = list(row)
        for _ in range(5):
            text.append(int(plain(model, torch.tensor([text]))[0, -1].argmax()))
        alone.append(text[len(row) :])
    assert continuations(model, rows, (), 5) == alone


def test_blocks_on_several_devices() -> None:
    """As `device_map` places them; here all are the CPU, with accelerate's hooks in place."""
    alone = hf_edit.edit(tiny_model(), tiny_tokenizer(), EDITS, CONFIG)
    model: PreTrainedModel = tiny_model()
    parts = [
        "model.embed_tokens",
        "model.norm",
        "model.rotary_emb",
        "lm_head",
        *(f"model.layers.{i}" for i in range(4)),
    ]
    model = dispatch_model(model, dict.fromkeys(parts, "cpu"), main_device="cpu", force_hooks=True)
    before = snapshot(model)
    pack = hf_edit.edit(model, tiny_tokenizer(), EDITS, CONFIG)
    assert changed(before, snapshot(model)) == []
    assert all(torch.equal(pack.deltas[name].dense(), delta.dense()) for name, delta in alone.deltas.items())


def test_the_text_part_of_a_multimodal_model(tmp_path: Path) -> None:
    model = multimodal()
    pack = hf_edit.edit(model, tiny_tokenizer(), EDITS, CONFIG)
    assert all(name.startswith("model.language_model.layers.") for name in pack.deltas)
    pack.save_pretrained(tmp_path / "pack")
    model.load_adapter(str(tmp_path / "pack"))
    assert (logits(model, ASKED) - dense_logits(multimodal(), pack.deltas, ids=ASKED)).abs().max() < 1e-5


def multimodal() -> PreTrainedModel:
    vision = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = Gemma3Config(
        text_config=FAMILIES["gemma3_text"],
        vision_config={**vision, "image_size": 16, "patch_size": 8},
        mm_tokens_per_image=4,
        image_token_id=3,
        boi_token_id=3,
        eoi_token_id=3,
    )
    torch.manual_seed(0)
    return AutoModelForImageTextToText.from_config(config).eval()
