"""The second moments that a pack's update was made against, collected again by the settings in its manifest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from hf_edit.errors import ConfigError
from hf_edit.methods import METHODS
from hf_edit.methods.training.teacher import strangers_of
from hf_edit.methods.training.texts import moments_over, prepared
from hf_edit.models.editable import EditableLinear, EditableModel
from hf_edit.packs.pack import EditPack
from hf_edit.progress import Progress
from hf_edit.prompting import PromptFormat
from hf_edit.solvers.ridge import penalty
from hf_edit.statistics.config import StatisticsConfig
from hf_edit.statistics.preserved import Preserved
from hf_edit.wordings import KINDS


LARGEST = {"tokens": 1 << 20, "conversations": 4096, "answer_tokens": 256, "length": 1024, "batch": 1024}
"""What a stranger's pack may have collected on this machine."""
LARGEST_WEIGHT = 1e6
MOST_FOR_EACH = 16


def whitening(
    model: EditableModel,
    prompts: PromptFormat,
    pack: EditPack,
    linears: Sequence[EditableLinear],
    progress: Progress,
) -> dict[str, Tensor]:
    """Linear name -> Cholesky factor (d_in, d_in) of C, float64, as the pack's method would have had it."""
    settings, statistics, seed = recipe(pack)
    preserve = Preserved(model, prompts, statistics, seed, progress)
    moments = preserve.moments(linears)
    weights = {"text": 1.0} | _weights(settings, len(pack.edits))
    total = dict(moments.combined_each([linear.name for linear in linears], weights, model.device))
    if settings.get("stranger_weight") and settings.get("strangers"):
        asked = strangers_of(preserve, pack.edits, min(int(settings["strangers"]), MOST_FOR_EACH))
        first = linears[0].layer
        texts = prepared(model, asked, first)
        for name, moment in moments_over(model, linears, texts, first, answers=True).items():
            total[name] += settings["stranger_weight"] * moment
    return {name: penalty(C, 1.0, settings.get("ridge", 1e-4)).factor for name, C in total.items()}


def recipe(pack: EditPack) -> tuple[dict[str, Any], StatisticsConfig, int]:
    """The settings that decide C, those of the statistics, and the seed.

    A manifest is a stranger's: it is not to make this machine read files, fetch data or compute for days. Settings
    that would, or that no method has, give way to the defaults, and the comparison then shows that C is another.
    """
    method = pack.manifest.method
    try:
        config = METHODS[method.name].config_class.from_mapping(method.config).to_json()
    except (AttributeError, ConfigError, KeyError, TypeError):
        config = dict(method.config)  # of a pack made from packs
    try:
        statistics = StatisticsConfig.from_mapping(config["statistics"])
    except (AttributeError, ConfigError, KeyError, TypeError):
        statistics = StatisticsConfig()
    if statistics.text != "self" or any((getattr(statistics, name) or 0) > most for name, most in LARGEST.items()):
        statistics = StatisticsConfig()
    statistics = replace(statistics, repo=None)  # where this machine looks is for its user to say
    settings: Any = config
    if config.get("backend") == "direct":
        most = config.get("together")
        joined = type(most) is int and len(pack.edits) > most and not config.get("polish")
        settings = config.get("join" if joined else "direct")
    given = settings.items() if isinstance(settings, Mapping) else ()
    numbers: dict[str, Any] = {
        name: value for name, value in given if isinstance(value, int | float) and 0 <= value <= LARGEST_WEIGHT
    }
    if isinstance(kinds := dict(given).get("wording_kinds"), (list, tuple)):
        numbers["wording_kinds"] = [kind for kind in KINDS if kind in kinds]
    return numbers, statistics, (pack.manifest.seed or 0) % (1 << 32)


def _weights(settings: Mapping[str, Any], n_edits: int) -> dict[str, float]:
    """Weight of each part of the statistics beside plain text."""
    weights = {part: float(settings.get(f"{part}_weight", 0)) for part in ("chat", "prompt", "answer")}
    if "prompt_weight" not in settings:  # AnyEdit's closed forms choose it by the number of edits
        weights["prompt"] = 0.01 if n_edits == 1 else 1.0
    return weights
