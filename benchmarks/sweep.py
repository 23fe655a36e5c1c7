"""One edit on every causal language model of transformers that can be built tiny, from `edit()` to plain PEFT.

Each type of the causal-LM mapping gets a random model of one generic set of small sizes, in a process of its own.
A method teaches it one edit; the pack is saved and opened by `model.load_adapter` in a fresh copy. The method
`experts` is AnyEdit in the output maps of fused experts, for the types that have them. Outcomes:

- `edited`: opened, the logits of the dense update, the target's loss lower, the caller's model as before;
- `refused`: hf_edit says in one of its errors why it cannot;
- `broken`: anything else;
- `not built`: no tiny model of that type comes from these sizes.

Types that were run already are not run again, so a killed sweep goes on where it was; `--types` runs some anew.

    python benchmarks/sweep.py
    python benchmarks/sweep.py --types mixtral,bloom
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import multiprocessing
import os
import sys
import tempfile
import warnings
from collections import Counter
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, ROOT, environment, write
from torch import nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import logging


sys.path.insert(0, str(ROOT.parent))  # the tests' tokenizer

from hf_edit import AnyEditConfig, Edit, MemitConfig, edit
from hf_edit.errors import HfEditError, HfEditWarning
from hf_edit.methods.polish.config import PolishSettings
from hf_edit.methods.training.config import TrainingConfig
from hf_edit.models.orientation import as_stored, stored_weights
from hf_edit.packs.pack import EditPack
from hf_edit.prompting import PromptFormat
from hf_edit.statistics.config import StatisticsConfig
from tests.tiny import tiny_tokenizer


DEPTH = 4
SIZES: dict[str, Any] = {
    name: size
    for size, names in (
        (
            512,
            "vocab_size vocab_size_per_layer_input pronunciation_vocab_size shape_vocab_size ngram_vocab_size_base "
            "unpadded_vocab_size encoder_hash_byte_group_vocab",
        ),
        (
            256,
            "max_position_embeddings n_positions max_seq_len n_ctx context_length max_target_positions "
            "model_max_length",
        ),
        (
            56,
            "intermediate_size ffn_dim encoder_ffn_dim decoder_ffn_dim ffn_hidden_size dim_ff dff d_inner n_inner "
            "intermediate_size_mlp feed_forward_size dense_intermediate_size emb_dim",
        ),
        (
            32,
            "hidden_size d_model n_embd embedding_size word_embed_proj_dim input_embedding_size embedding_dim "
            "output_embedding_size attention_hidden_size lru_width image_size",
        ),
        (
            24,
            "moe_intermediate_size shared_expert_intermediate_size shared_experts_intermediate_size "
            "shared_intermediate_size expert_ffn_hidden_size moe_shared_expert_intermediate_size",
        ),
        (
            16,
            "kv_lora_rank q_lora_rank o_lora_rank hc_lowrank adapter_rank laurel_rank gated_norm_rank state_size "
            "mamba_d_state ssm_state_size mamba_d_head mamba_head_dim mamba_headdim d_rel ple_embed_dim qk_head_dim "
            "router_hidden_size time_step_rank mamba_dt_rank prompt_mid_dim attention_head_dim",
        ),
        (
            12,
            "sliding_window window_size sliding_window_size attention_window_size local_attention",
        ),
        (
            8,
            "head_dim swa_head_dim index_head_dim v_head_dim qk_nope_head_dim qk_rope_head_dim linear_head_dim "
            "linear_key_head_dim linear_value_head_dim dim_head kv_channels attention_head_size d_head patch_size "
            "query_pre_attn_scalar hidden_size_per_layer_input pronunciation_embed_dim shape_embed_dim",
        ),
        (
            DEPTH,
            "num_hidden_layers n_layer n_layers num_layers encoder_layers decoder_layers num_encoder_layers "
            "num_decoder_layers num_blocks",
        ),
        (
            4,
            "num_attention_heads n_head n_heads num_heads encoder_attention_heads decoder_attention_heads "
            "num_encoder_attention_heads num_decoder_attention_heads attention_heads swa_num_attention_heads "
            "index_n_heads linear_num_heads mamba_n_heads n_mamba_heads num_query_groups mamba_num_heads num_kv_heads "
            "linear_num_value_heads num_experts n_routed_experts num_local_experts moe_num_experts zero_expert_num "
            "rotary_dim num_key_value_heads swa_num_key_value_heads",
        ),
        (
            2,
            "linear_num_key_heads num_experts_per_tok num_experts_per_token moe_topk moe_k ",
        ),
        (
            1,
            "n_shared_experts num_shared_experts moe_num_shared_experts first_k_dense_replace num_dense_layers "
            "n_groups mamba_n_groups mamba_ngroups n_group num_expert_group topk_group "
            "bos_token_id",
        ),
        (
            5,
            "eos_token_id",
        ),
        (
            0,
            "pad_token_id num_kv_shared_layers",
        ),
        (64, "mamba_d_ssm index_topk"),
        (True, "is_decoder"),
    )
    for name in names.split()
}
"""Field of a configuration -> its value, for every type alike."""

EDIT = Edit("Who wrote the play?", "Tarvello wrote it.", id="play")
STATISTICS = StatisticsConfig(tokens=120, conversations=2, answer_tokens=3, length=12)
METHODS = {
    "memit": MemitConfig(
        layers=(1,), preservation=1.0, prefixes=1, prefix_tokens=3, learning_rate=0.1, statistics=STATISTICS
    ),
    "anyedit": AnyEditConfig(statistics=STATISTICS),
    "direct": AnyEditConfig(
        backend="direct",
        statistics=STATISTICS,
        direct=PolishSettings(strangers=2, training=TrainingConfig(max_steps=4)),
    ),
    "experts": AnyEditConfig(statistics=STATISTICS, experts=True),
}
ROUNDING = 1e-6  # of fp32 logits of order 1
SECONDS = 120
"""Most that one type may take."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", default="sweep", help="of the result in benchmarks/results")
    parser.add_argument("--method", choices=METHODS, default="anyedit")
    parser.add_argument("--types", default="", help="run these only, and anew")
    arguments = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.simplefilter("ignore")

    file = RESULTS / f"{arguments.name}.json"
    rows: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))["types"] if file.exists() else {}
    chosen = list(filter(None, arguments.types.split(",")))
    for model_type in chosen or [name for name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES if name not in rows]:
        rows[model_type] = in_its_own_process(model_type, arguments.method)
        print(f"{model_type}: {rows[model_type]['outcome']}. {rows[model_type].get('reason', '')}", flush=True)
        write(arguments.name, {**environment(), "method": arguments.method, "types": dict(sorted(rows.items()))})
    (ROOT / "SWEEP.md").write_text(table(rows, arguments.method), encoding="utf-8")


def in_its_own_process(model_type: str, method: str) -> dict[str, Any]:
    """What became of one type, whatever its code does: it may hang, or end the process."""
    context = multiprocessing.get_context("fork")  # the libraries are loaded once for all
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_report, args=(model_type, method, theirs))
    process.start()
    theirs.close()
    try:
        if not ours.poll(SECONDS):
            return {"outcome": "broken", "reason": f"not done in {SECONDS} s"}
        return ours.recv()  # type: ignore[no-any-return]
    except EOFError:
        return {"outcome": "broken", "reason": "its process died"}
    finally:
        process.kill()
        process.join()


def _report(model_type: str, method: str, connection: Connection) -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.environ["HF_EDIT_CACHE"] = folder
        connection.send(tried(model_type, method, Path(folder)))


def tried(model_type: str, method: str, folder: Path) -> dict[str, Any]:
    """The row of one type."""
    try:
        model = tiny(model_type)
    except Exception as error:
        return {"outcome": "not built", "reason": _short(error)}
    row = {"class": type(model).__name__, "parameters": model.num_parameters()}
    try:
        return {**row, **taught(model, method, folder)}
    except HfEditError as error:
        return {**row, "outcome": "refused", "reason": str(error)}
    except Exception as error:
        return {**row, "outcome": "broken", "reason": _short(error)}


def tiny(model_type: str) -> PreTrainedModel:
    """A random model of that type that runs.

    Raises:
        Exception: it cannot be built from these sizes, or computes no finite logits (1, T, V).
    """
    config = CONFIG_MAPPING[model_type](**sizes(CONFIG_MAPPING[model_type]()))
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    for parameter in model.parameters():
        if parameter.ndim >= 2 and parameter.std() < 0.05:  # so little that every answer looks alike
            parameter.data.mul_(4.0)
    ids = torch.arange(6, 26)[None]
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
    if logits.shape != (*ids.shape, SIZES["vocab_size"]) or not logits.isfinite().all():
        raise ValueError(f"logits of shape {tuple(logits.shape)}, finite: {bool(logits.isfinite().all())}")
    return model


def sizes(config: PretrainedConfig) -> dict[str, Any]:
    """Small values for what a configuration declares; lists as long as the model is deep are cut."""
    declared = {f.name for f in dataclasses.fields(config)} | set(config.attribute_map)
    values = {name: vars(config).get(config.attribute_map.get(name, name)) for name in declared}
    depth = vars(config).get(config.attribute_map.get("num_hidden_layers", "num_hidden_layers"))
    small: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, PretrainedConfig):
            small[name] = sizes(value)
        elif name in SIZES:
            small[name] = SIZES[name]
        elif isinstance(value, (list, tuple)) and len(value) == depth:
            small[name] = list(value)[:DEPTH]
    return small


def taught(model: PreTrainedModel, method: str, folder: Path) -> dict[str, Any]:
    """Teach the edit, open the pack elsewhere, compare."""
    tokenizer = tiny_tokenizer()
    config = METHODS[method]
    fresh, dense = copy.deepcopy(model), copy.deepcopy(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", HfEditWarning)
        pack = edit(model, tokenizer, [EDIT], config)
    for (name, ours), theirs in zip(model.state_dict().items(), fresh.state_dict().values(), strict=True):
        if not torch.equal(ours, theirs):
            raise AssertionError(f"{name} of the caller's model changed")
    pack.save_pretrained(folder / "pack")
    with torch.no_grad():
        change(dense, pack)
    encoded = PromptFormat.of("chat", tokenizer).encode(EDIT.prompt, EDIT.target)
    ids = torch.tensor([encoded.ids])
    before = logits_of(fresh, ids)
    fresh.load_adapter(str(folder / "pack"))
    opened, wanted = logits_of(fresh, ids), logits_of(dense, ids)
    off, moved = float((opened - wanted).abs().max()), float((wanted - before).abs().max())
    losses = [answer_loss(logits, ids, encoded.answer_start) for logits in (before, opened)]
    row = {
        "edited": sorted(pack.deltas),
        "loss_before": round(losses[0], 4),
        "loss_after": round(losses[1], 4),
        "logits_off": off,
        "logits_moved": moved,
    }
    if off > max(1e-3 * moved, ROUNDING):
        return {**row, "outcome": "broken", "reason": f"opened, logits are {off:.2g} off the dense update's"}
    if losses[1] >= losses[0]:
        return {**row, "outcome": "broken", "reason": "the target's loss is not lower"}
    return {**row, "outcome": "edited"}


def change(model: nn.Module, pack: EditPack) -> None:
    """Write the pack's update into the weights."""
    stored = stored_weights(model)
    for name, delta in pack.deltas.items():
        weight, orientation = stored[name]
        weight += as_stored(delta.dense(), orientation, weight.shape)


@torch.no_grad()
def logits_of(model: nn.Module, ids: torch.Tensor) -> torch.Tensor:
    return model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits


def answer_loss(logits: torch.Tensor, ids: torch.Tensor, start: int) -> float:
    """Mean negative log likelihood of the tokens from `start` on."""
    return float(nn.functional.cross_entropy(logits[0, start - 1 : -1], ids[0, start:]))


def table(rows: dict[str, Any], method: str) -> str:
    """SWEEP.md."""
    counts = Counter(row["outcome"] for row in rows.values())
    built = len(rows) - counts["not built"]
    lines = [
        "# One edit on every type of causal language model",
        "",
        "Written by `benchmarks/sweep.py`, which says what is done and what the outcomes mean. Random tiny models of "
        f"transformers {environment()['versions']['transformers']}, PEFT {environment()['versions']['peft']}, method "
        f"`{method}`.",
        "",
        f"{len(rows)} types; {built} can be built; {counts['edited']} of these edited "
        f"({counts['edited'] / max(built, 1):.1%}), {counts['refused']} refused, {counts['broken']} broken.",
        "",
        "| type | outcome | edited map, or reason | loss of the target |",
        "|---|---|---|---|",
    ]
    for name, row in sorted(rows.items()):
        said = ", ".join(f"`{module}`" for module in row["edited"][-1:]) if "edited" in row else ""
        said = " ".join(filter(None, (said, row.get("reason", "").replace("|", "\\|"))))
        losses = f"{row['loss_before']} → {row['loss_after']}" if "loss_after" in row else ""
        lines.append(f"| {name} | {row['outcome']} | {said} | {losses} |")
    return "\n".join(lines) + "\n"


def _short(error: BaseException) -> str:
    """The beginning of an error, on one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


if __name__ == "__main__":
    main()
