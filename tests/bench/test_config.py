from __future__ import annotations

from typing import Any

import pytest

from hf_edit.bench.cells import cells_of
from hf_edit.bench.config import BenchConfig
from hf_edit.bench.questions import indices
from hf_edit.errors import ConfigError


SMALL: dict[str, Any] = {
    "methods": ["memit", "none", {"method": "memit", "label": "memit-two", "settings": {"layers": [1, 2]}}],
    "data": [{"file": "facts/zsre_eval.json", "layout": "zsre", "together": [1, 100], "format": "plain"}],
    "seeds": [0, 3],
}


def test_a_config_survives_json_but_for_the_folders_of_its_files() -> None:
    config = BenchConfig.from_mapping(SMALL)
    again = BenchConfig.from_mapping(config.to_json())
    assert again.methods == config.methods
    assert again.data[0].name == config.data[0].name == "zsre_eval"
    assert again.data[0].file == "zsre_eval.json"
    assert again.to_json() == config.to_json()


def test_settings_of_a_method_get_the_format_of_the_data_and_the_seed() -> None:
    config = BenchConfig.from_mapping(SMALL)
    settings = config.methods[2].config("plain", 3)
    assert (settings.format, settings.seed, settings.layers) == ("plain", 3, (1, 2))
    assert config.evaluation(config.data[0], 3).seed == 3


def test_cells_are_the_product_and_a_baseline_is_one() -> None:
    names = [cell.name for cell in cells_of(BenchConfig.from_mapping(SMALL), {"zsre_eval": 50})]
    assert names == ["zsre_eval--none"] + [
        f"zsre_eval--{method}--by-{size}--seed-{seed}"
        for method in ("memit", "memit-two")
        for size in (1, 50)
        for seed in (0, 3)
    ]


def test_more_edits_together_than_there_are_is_all_of_them_once() -> None:
    config = BenchConfig.from_mapping({**SMALL, "seeds": [0], "methods": ["memit"]})
    assert [cell.together for cell in cells_of(config, {"zsre_eval": 1})] == [1]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"methods": []}, "no methods"),
        ({"methods": ["memit", "memit"]}, "'memit' twice"),
        ({"methods": ["nonsense"]}, "'nonsense' is unknown"),
        ({"methods": [{"method": "memit", "label": "../memit"}]}, "label of a method is '../memit'"),
        ({"methods": [{"method": "memit", "label": "a--b"}]}, "label of a method"),
        ({"methods": [{"method": "memit", "settings": {"stepz": 1}}]}, "'stepz' is no setting"),
        ({"methods": [{"method": "none", "settings": {"steps": 1}}]}, "baseline 'none' has no settings"),
        ({"methods": "memit"}, "no list"),
        ({"data": []}, "no data"),
        ({"data": [{"layout": "zsre"}]}, "name of a data set is ''"),
        ({"data": [{"file": "a.json", "layout": "csv"}]}, "is none of"),
        ({"data": [{"file": "a.json", "records": "1:x"}]}, "are no ranges"),
        ({"data": [{"file": "a.json", "together": [0]}]}, "below 1"),
        ({"data": [{"file": "a.json", "shape": 1}]}, "no setting 'shape'"),
        ({"seeds": [-1]}, "seeds are"),
        ({"evaluate": {"batch": 0}}, "batch = 0"),
        ({"evaluate": {"seed": 1}}, "evaluate has a seed of its own"),
        ({"evaluate": {"format": "qa"}}, "evaluate has a format of its own"),
        ({"methods": [{"method": "memit", "settings": {"seed": 5}}]}, "'memit' has a seed of its own"),
        ({"size": 3}, "no setting 'size'"),
    ],
)
def test_what_is_wrong_is_told(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        BenchConfig.from_mapping({**SMALL, **change})


def test_records_are_ranges_and_numbers_each_once() -> None:
    assert indices("", 3) == [0, 1, 2]
    assert indices("3,1:4, 90", 10) == [3, 1, 2]
