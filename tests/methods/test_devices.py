"""Every method on a model whose blocks lie on several devices comes to what it does on one."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import hf_edit
from hf_edit import AnyEditConfig, EMSEditConfig, FinetuneConfig, MemitConfig, PolishConfig, UnKEConfig
from hf_edit.edits import Edit, EditSet
from hf_edit.methods.anyedit.unke_config import UnKESettings
from hf_edit.methods.finetune.config import FinetuneTraining
from hf_edit.methods.msbp.config import CalibrationConfig
from hf_edit.methods.polish.config import PolishSettings
from hf_edit.methods.training.config import TrainingConfig
from hf_edit.statistics.config import StatisticsConfig
from tests.second_device import on_two_devices
from tests.tiny import tiny_model, tiny_tokenizer


EDITS = EditSet(
    [
        Edit("Who wrote the play?", "Tarvello wrote it.", subject="play", id="play"),
        Edit("What is the capital of Veldora?", "Port Amber.", subject="Veldora", id="capital"),
    ]
)
EARLIER = EditSet([Edit("Tell me about Mount Fuji", "The fox lives there.", id="fuji")])
STATISTICS = StatisticsConfig(tokens=120, conversations=4, answer_tokens=3, length=12)
TRAINING = TrainingConfig(max_steps=3)
LAYERS = (1, 2, 3)  # the last two on the second device
CONFIGS: dict[str, Any] = {
    "polish": PolishConfig(layers=LAYERS, training=TRAINING, strangers=2, statistics=STATISTICS),
    "apart": AnyEditConfig(
        backend="direct",
        together=1,
        layers=LAYERS,
        direct=PolishSettings(training=TRAINING, strangers=2),
        statistics=STATISTICS,
    ),
    "anyedit": AnyEditConfig(backend="memit", layers=LAYERS, max_evaluations=3, statistics=STATISTICS),
    "unke": UnKEConfig(layers=(2,), max_evaluations=3, unke=UnKESettings(steps=3), statistics=STATISTICS),
    "full": UnKEConfig(
        layers=(2,), max_evaluations=3, unke=UnKESettings(steps=3, parametrisation="full"), statistics=STATISTICS
    ),
    "memit": MemitConfig(layers=LAYERS, max_evaluations=3, prefixes=1, prefix_tokens=3, statistics=STATISTICS),
    "finetune": FinetuneConfig(layers=LAYERS, training=FinetuneTraining(max_steps=3), statistics=STATISTICS),
    "emsedit": EMSEditConfig(
        layers=LAYERS, steps=2, contexts=1, calibration=CalibrationConfig(drift_weight=0), statistics=STATISTICS
    ),
}


@pytest.mark.filterwarnings("ignore::hf_edit.errors.HfEditWarning")  # random models learn little
@pytest.mark.parametrize("method", CONFIGS)
def test_several_devices_come_to_the_pack_of_one(method: str) -> None:
    config, model = CONFIGS[method], tiny_model()
    alone = hf_edit.edit(tiny_model(), tiny_tokenizer(), EDITS, config, earlier=EARLIER)
    with on_two_devices(model, first=2):
        pack = hf_edit.edit(model, tiny_tokenizer(), EDITS, config, earlier=EARLIER)
    assert pack.deltas.keys() == alone.deltas.keys()
    assert all(torch.equal(pack.deltas[name].dense(), delta.dense()) for name, delta in alone.deltas.items())
