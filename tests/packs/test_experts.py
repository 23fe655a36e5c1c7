"""Packs that change fused experts: the same however they are opened, off again without a trace, nothing hostile."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

import hf_edit
from hf_edit import AnyEditConfig, FinetuneConfig, MemitConfig, PolishConfig
from hf_edit.compose.attach import attach, detach
from hf_edit.compose.merge import merge, unmerge
from hf_edit.edits import Edit
from hf_edit.errors import BaseMismatchError, ComposeError, ConfigError, HfEditError, PackError
from hf_edit.methods.polish.config import PolishSettings
from hf_edit.methods.training.config import TrainingConfig
from hf_edit.models.editable import EditableModel
from hf_edit.packs.contents import ADAPTER, CONFIG, MANIFEST
from hf_edit.packs.layout import experts_delta, experts_factors
from hf_edit.packs.pack import EditPack
from hf_edit.settings import Settings
from hf_edit.solvers.low_rank import LowRankDelta
from hf_edit.statistics.config import StatisticsConfig
from tests.packs.hostile import in_json, reseal
from tests.packs.make import IDS, dense_logits, logits, make_pack, same_pack
from tests.snapshots import changed, snapshot
from tests.tiny import tiny_model, tiny_tokenizer


pytestmark = [
    pytest.mark.filterwarnings("ignore::hf_edit.errors.HfEditWarning"),
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),
]
FAMILIES = ("mixtral", "gpt_oss", "jetmoe")
EDITS = [Edit("Who wrote the play?", "Tarvello wrote it.", id="play", subject="play")]


def exact_model(family: str) -> PreTrainedModel:
    model = tiny_model(family, dtype=torch.float64)
    model.set_experts_implementation("eager")  # grouped products know no float64
    return model


def experts_pack(model: PreTrainedModel, ranks: tuple[int, ...] = (2, 5)) -> EditPack:
    """Random changes of the experts of the blocks from the second on."""
    generator = torch.Generator().manual_seed(0)
    deltas = {}
    for linear, rank in zip(EditableModel.of(model, experts=True).linears[1:], ranks, strict=False):
        B, A = (torch.randn(*shape, generator=generator) for shape in ((linear.d_out, rank), (rank, linear.d_in)))
        deltas[linear.name] = LowRankDelta(B, 0.1 * A)
    return make_pack(model, deltas=deltas)


def close(found: Tensor, wanted: Tensor) -> bool:
    return bool((found - wanted).abs().max() <= 1e-9 * wanted.abs().max())


def test_factors_for_peft_and_back() -> None:
    generator = torch.Generator().manual_seed(0)
    delta = LowRankDelta(torch.randn(5, 2, generator=generator), torch.randn(2, 12, generator=generator))
    A, B = experts_factors(delta, 3)
    assert A.shape == (6, 4) and B.shape == (5, 6)
    by_expert = [B.reshape(5, 2, 3)[:, :, e] @ A.reshape(3, 2, 4)[e] for e in range(3)]  # as PEFT reads them
    assert torch.allclose(torch.cat(by_expert, dim=1), delta.dense())
    back = experts_delta(A, B, 3)
    assert back is not None and torch.equal(back.A, delta.A) and torch.equal(back.B, delta.B)
    B[0, 0] += 1
    assert experts_delta(A, B, 3) is None


@pytest.mark.parametrize("family", FAMILIES)
def test_every_way_of_opening_gives_the_dense_change(family: str, tmp_path: Path) -> None:
    model = exact_model(family)
    pack = experts_pack(model)
    pack.save_pretrained(tmp_path / "pack")
    base, wanted = logits(model), dense_logits(model, pack.deltas)
    assert (wanted - base).abs().max() > 1e-2
    view = EditableModel.of(model)
    with torch.no_grad(), view.updated({name: delta.to(torch.float64) for name, delta in pack.deltas.items()}):
        assert close(view.logits(IDS), wanted)
    plain = copy.deepcopy(model)
    plain.load_adapter(str(tmp_path / "pack"))
    assert close(logits(plain), wanted)
    in_peft = PeftModel.from_pretrained(copy.deepcopy(model), str(tmp_path / "pack"), autocast_adapter_dtype=False)
    assert close(logits(in_peft), wanted)
    attached = copy.deepcopy(model)
    attach(attached, pack)
    assert close(logits(attached), wanted)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_saved_is_read_again(family: str, tmp_path: Path) -> None:
    model = tiny_model(family)
    pack = experts_pack(model)
    pack.save_pretrained(tmp_path / "pack")
    read = EditPack.from_pretrained(tmp_path / "pack")
    assert same_pack(pack, read)
    read.verify(model)
    read.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / ADAPTER).read_bytes() == (tmp_path / "pack" / ADAPTER).read_bytes()
    with pytest.raises(BaseMismatchError, match="has no module"):
        read.verify(tiny_model())
    with pytest.raises(BaseMismatchError, match="other values"):
        read.verify(tiny_model(family, seed=1))


@pytest.mark.parametrize("opened", [attach, lambda model, pack, name: _loaded(model, pack, name)])
def test_detached_is_the_base(opened: Callable[..., object]) -> None:
    model = tiny_model("mixtral")
    base, state = logits(model), {name: tensor.clone() for name, tensor in model.state_dict().items()}
    kinds = {name: type(module) for name, module in model.named_modules()}
    opened(model, experts_pack(model), "one")
    assert not torch.equal(logits(model), base)
    detach(model, "one")
    assert {name: type(module) for name, module in model.named_modules()} == kinds
    assert model.state_dict().keys() == state.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(logits(model), base)


def _loaded(model: PreTrainedModel, pack: EditPack, name: str) -> None:
    model.load_adapter(adapter_name=name, peft_config=pack.lora_config(), adapter_state_dict=pack.adapter_state_dict())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_merge_is_the_dense_change_and_undone_to_the_bit(family: str, dtype: torch.dtype) -> None:
    model = tiny_model(family, dtype=dtype)
    pack = experts_pack(model)
    before, wanted = snapshot(model), dense_logits(model, pack.deltas)
    attach(model, pack, "one")
    receipt = merge(model, pack)
    assert (logits(model) - wanted).abs().max() <= (1e-5 if dtype == torch.float32 else 0) * wanted.abs().max()
    unmerge(model, receipt)
    assert changed(before, snapshot(model)) == []


@pytest.mark.parametrize("layout", ["compact", "sparse", "all-layers"])
def test_layouts_that_cannot_hold_it_say_so(layout: str, tmp_path: Path) -> None:
    with pytest.raises(PackError):
        experts_pack(tiny_model("mixtral")).save_pretrained(tmp_path / "pack", layout=layout)


EXPERTS = "model.layers.1.mlp.experts.down_proj"
KEY = "base_model.model.model.layers.1.mlp.experts.lora_{}.weight"


def tensor(letter: str, change: Callable[[Tensor], Tensor]) -> Callable[[Path], None]:
    def spoil(pack: Path) -> None:
        tensors = load_file(pack / ADAPTER)
        key = KEY.format(letter)
        tensors[key] = change(tensors[key]).contiguous()
        save_file(tensors, pack / ADAPTER)

    return spoil


def one_expert(B: Tensor) -> Tensor:
    B[0, 1] += 1
    return B


HOSTILE: dict[str, Callable[[Path], object]] = {
    "an expert that writes elsewhere": tensor("B", one_expert),
    "experts too many": tensor("A", lambda A: torch.cat([A, A])),
    "an output too many": tensor("B", lambda B: torch.cat([B, B[:1]])),
    "not finite": tensor("A", lambda A: A * float("nan")),
    "other parameters in the configuration": in_json(CONFIG, "target_parameters", value=["experts"]),
    "no parameters in the configuration": in_json(CONFIG, "target_parameters", drop=True),
    "modules in the configuration": in_json(CONFIG, "target_modules", value=["down_proj"]),
    "two axes": in_json(MANIFEST, "base", "tensors", EXPERTS, "shape", value=[32, 224]),
    "one expert": in_json(MANIFEST, "base", "tensors", EXPERTS, "shape", value=[1, 32, 224]),
    "no experts": in_json(MANIFEST, "base", "tensors", EXPERTS, "shape", value=[0, 32, 56]),
    "negative experts": in_json(MANIFEST, "base", "tensors", EXPERTS, "shape", value=[-4, -32, 56]),
    "experts by the billion": in_json(MANIFEST, "base", "tensors", EXPERTS, "shape", value=[1 << 40, 32, 56]),
    "a linear": in_json(MANIFEST, "modules", EXPERTS, "orientation", value="linear"),
    "the other way round": in_json(MANIFEST, "modules", EXPERTS, "orientation", value="experts-transposed"),
    "a layout that cannot hold it": in_json(MANIFEST, "layout", value="compact"),
    "a rank beyond the matrix": in_json(MANIFEST, "modules", EXPERTS, "rank", value=33),
}


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("healthy") / "pack"
    experts_pack(tiny_model("mixtral")).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("spoil", HOSTILE.values(), ids=HOSTILE)
def test_hostile_packs_are_refused(spoil: Callable[[Path], object], healthy: Path, tmp_path: Path) -> None:
    pack = tmp_path / "pack"
    pack.mkdir()
    for file in healthy.iterdir():
        (pack / file.name).write_bytes(file.read_bytes())
    spoil(pack)
    reseal(pack)
    with pytest.raises(PackError):
        EditPack.from_pretrained(pack)


STATISTICS = StatisticsConfig(tokens=120, conversations=2, answer_tokens=3, length=12)
TRAINING = TrainingConfig(max_steps=6, learning_rate=0.05)
METHODS: dict[str, Settings] = {
    "memit": MemitConfig(
        layers=(1,), prefixes=1, prefix_tokens=3, learning_rate=0.1, statistics=STATISTICS, experts=True
    ),
    "alphaedit": AnyEditConfig(backend="alphaedit", layers=(1,), statistics=STATISTICS, experts=True),
    "direct": AnyEditConfig(
        backend="direct",
        layers=(1, 2),
        direct=PolishSettings(strangers=0, training=TRAINING),
        statistics=STATISTICS,
        experts=True,
    ),
    "finetune": FinetuneConfig(layers=(1, 2), rank=4, statistics=STATISTICS, experts=True),
}


@pytest.mark.parametrize("method", METHODS)
def test_methods_edit_them(method: str, tmp_path: Path) -> None:
    """From `edit()` to plain `load_adapter`: the answer gets likelier, and the base is as it was."""
    model, tokenizer = tiny_model("mixtral"), tiny_tokenizer()
    before = snapshot(model)
    pack = hf_edit.edit(model, tokenizer, EDITS, METHODS[method])
    assert changed(before, snapshot(model)) == []
    assert {name.rpartition(".")[2] for name in pack.deltas} == {"down_proj"}
    pack.save_pretrained(tmp_path / "pack")
    encoded = pack.prompts(tokenizer).encode(EDITS[0].prompt, EDITS[0].target)
    ids = torch.tensor([encoded.ids])
    wanted, losses = dense_logits(model, pack.deltas, ids=ids), []
    for loaded in (False, True):
        if loaded:
            model.load_adapter(str(tmp_path / "pack"))
        found = logits(model, ids)
        answer = slice(encoded.answer_start - 1, -1)
        losses.append(torch.nn.functional.cross_entropy(found[0, answer], ids[0, encoded.answer_start :]))
    assert (found - wanted).abs().max() <= 1e-4
    assert losses[1] < losses[0]


def test_a_pack_of_them_is_polished_and_taken_apart() -> None:
    model, tokenizer = tiny_model("mixtral"), tiny_tokenizer()
    pack = hf_edit.edit(model, tokenizer, EDITS, METHODS["memit"])
    settings = PolishConfig(layers=(1,), strangers=0, training=TRAINING, statistics=STATISTICS, experts=True)
    polished = hf_edit.polish(pack, model=model, tokenizer=tokenizer, config=settings)
    assert set(polished.deltas) == set(pack.deltas)


def test_several_packs_add_up_on_the_same_experts_and_only_there() -> None:
    """PEFT keeps one set of parameters for all adapters of a model."""
    model = exact_model("mixtral")
    first, other = experts_pack(model), experts_pack(model, ranks=(3,))
    again = make_pack(model, deltas={name: LowRankDelta(d.A[:1, :32].T, d.A[:1]) for name, d in first.deltas.items()})
    wanted = dense_logits(model, first.deltas, again.deltas)
    attach(model, first, "one")
    before = snapshot(model)
    with pytest.raises(ComposeError, match="same set of parameters"):
        attach(model, other, "two")
    assert changed(before, snapshot(model)) == []
    attach(model, again, "two")
    assert close(logits(model), wanted)


@pytest.mark.parametrize("blocks", [2, 3])
def test_an_adapter_around_them_is_named(blocks: int) -> None:
    model = tiny_model("mixtral")
    attach(model, experts_pack(model, (1,) * blocks), "one")
    with pytest.raises(HfEditError, match="carry an adapter"):
        EditableModel.of(model, experts=True)


def test_unke_refuses_them() -> None:
    with pytest.raises(ConfigError, match="experts = True does not go with backend = unke"):
        AnyEditConfig(backend="unke", experts=True)
