"""Settings: read from mappings, written as JSON, every limit enforced with the name, the value and the limit."""

from __future__ import annotations

import json
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_edit.errors import ConfigError
from hf_edit.methods.anyedit.config import AnyEditConfig
from hf_edit.settings import Settings, setting
from hf_edit.statistics.config import StatisticsConfig


@dataclass(frozen=True)
class Inner(Settings):
    size: int = setting(3, "A size.", at_least=1)


@dataclass(frozen=True)
class Outer(Settings):
    rate: float = setting(0.5, "A rate.", above=0, at_most=1)
    count: int | None = setting(None, "A count.", at_least=2)
    layers: tuple[int, ...] | None = setting(None, "Layers.", at_least=0)
    kind: str | None = setting(None, "A kind.", choices=("one", "two"))
    inner: Inner = setting(Inner, "Inner settings.")


@given(
    st.builds(
        Outer,
        rate=st.floats(0.001, 1),
        count=st.none() | st.integers(2, 9),
        layers=st.none() | st.lists(st.integers(0, 5)).map(tuple),
        kind=st.sampled_from([None, "one", "two"]),
        inner=st.builds(Inner, size=st.integers(1, 9)),
    )
)
def test_what_is_written_is_read_back(outer: Outer) -> None:
    assert Outer.from_mapping(json.loads(json.dumps(outer.to_json()))) == outer


def test_values_are_taken_as_json_and_toml_write_them() -> None:
    outer = Outer.from_mapping({"rate": 1, "layers": [1, 2], "inner": {"size": 4}})
    assert outer == Outer(rate=1.0, layers=(1, 2), inner=Inner(4))
    assert isinstance(outer.rate, float)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"rate": 0}, "rate = 0.0 is not above 0"),
        ({"rate": 1.5}, "rate = 1.5 is above 1"),
        ({"rate": float("nan")}, "rate = nan is not finite"),
        ({"rate": float("inf")}, "rate = inf is not finite"),
        ({"rate": "fast"}, "rate = 'fast' is not of the type float"),
        ({"rate": True}, "rate = True is not of the type float"),
        ({"rate": None}, "rate = None is not of the type float"),
        ({"count": 1}, "count = 1 is below 2"),
        ({"count": 2.5}, "count = 2.5 is not of the type int | None"),
        ({"layers": [0, -1]}, "layers = -1 is below 0"),
        ({"layers": 3}, "layers = 3 is not of the type"),
        ({"layers": ["a"]}, "is not of the type"),
        ({"kind": "three"}, "kind = 'three' is none of one, two"),
        ({"inner": 3}, "inner = 3 is not of the type Inner"),
        ({"inner": {"size": 0}}, "size = 0 is below 1"),
        ({"raet": 1}, "'raet' is no setting of Outer. Did you mean 'rate'?"),
        ({"zzz": 1}, "Settings: rate, count, layers, kind, inner."),
    ],
)
def test_what_is_wrong_is_named(values: dict, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Outer.from_mapping(values)
    assert said in str(caught.value)
    assert caught.value.remedy


def test_the_constructor_checks_as_well() -> None:
    with pytest.raises(ConfigError, match="size = 0 is below 1"):
        Inner(size=0)


def test_where_things_are_looked_for_is_not_recorded() -> None:
    config = AnyEditConfig.from_mapping({"statistics": {"repo": "me/stats"}})
    assert config.statistics.repo == "me/stats" and config.to_json() == AnyEditConfig().to_json()
    assert "repo" not in config.statistics.to_json()


@pytest.mark.parametrize("config_class", [AnyEditConfig, StatisticsConfig])
def test_real_settings_survive_json_and_explain_themselves(config_class: type[Settings]) -> None:
    config = config_class()
    assert config_class.from_mapping(json.loads(json.dumps(config.to_json()))) == config
    for name in config.to_json():
        assert config_class.__dataclass_fields__[name].metadata["help"].endswith((".", "]"))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"window": 5, "overlap": 5}, "overlap = 5 is not below window = 5"),
        ({"layers": [3, 1]}, r"layers = \[3, 1\] are not ascending"),
        ({"layers": [1, 1]}, r"layers = \[1, 1\] are not ascending"),
        ({"layers": []}, "names no layer"),
        ({"backend": "magic"}, "backend = 'magic' is none of memit"),
        ({"statistics": {"length": 4}}, "length = 4 is below 8"),
    ],
)
def test_settings_of_anyedit_that_make_no_sense_together(values: dict, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        AnyEditConfig.from_mapping(values)
