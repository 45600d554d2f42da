"""Tables as files: what was saved is loaded, and every fault names the file and the remedy."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixcache import Calibration, Calibrations, ConfigurationError, load_calibration, resample, save_calibration

TABLE = Calibration(
    policy="magcache",
    values={"ratios": {"cond": [1.0, 0.5], "uncond": [1.0, 2.0]}, "names": ["a  b", "[ c ]"]},
    source="a test, [1, 2]",
    match={"num_layers": 3},
)


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    save_calibration(path, TABLE)
    assert load_calibration(path) == load_calibration(str(path), "magcache") == TABLE
    assert '"cond": [1.0, 0.5]' in path.read_text()
    assert [file.name for file in tmp_path.iterdir()] == ["table.json"]


def test_a_file_that_says_no_source_is_its_own(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    path.write_text('{"schema": 1, "policy": "magcache", "values": {}}')
    assert load_calibration(path) == Calibration(policy="magcache", values={}, source=str(path))


GOOD = {"schema": 1, "policy": "magcache", "values": {}}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "cannot read table .*: No such file"),
        ("{", "is not JSON"),
        ('{"schema": 1, "policy": "magcache", "values": {"a": NaN}}', "NaN is not a number"),
        ("\udc80", "is not JSON"),
        ([1], "it holds a list"),
        ({"schema": 1}, "it has no policy, values"),
        ({**GOOD, "schema": 2}, "it has schema 2, this mixcache reads 1"),
        ({**GOOD, "schema": True}, "its schema is True, not a int"),
        ({**GOOD, "values": [1]}, r"its values is \[1\], not an object"),
        ({**GOOD, "match": 1}, "its match is 1, not an object"),
        ({**GOOD, "policy": "teacache"}, "is for policy 'teacache', not 'magcache'"),
    ],
)
def test_a_fault_names_the_file_and_the_remedy(content: Any, said: str, tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    if isinstance(content, str):
        path.write_bytes(content.encode("utf-8", "surrogateescape"))
    elif content is not None:
        path.write_text(json.dumps(content))
    with pytest.raises(ConfigurationError, match=said) as caught:
        load_calibration(path, "magcache")
    assert str(path) in str(caught.value)
    assert "mixcache calibrate magcache" in str(caught.value)


@pytest.mark.parametrize("value", [float("nan"), object()])
def test_what_is_no_plain_number_is_not_saved(value: Any, tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    with pytest.raises(ConfigurationError, match="plain finite numbers"):
        save_calibration(path, Calibration(policy="magcache", values={"a": value}))
    assert not list(tmp_path.iterdir())


def test_a_table_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"cannot write .*nowhere/table\.json: No such file"):
        save_calibration(tmp_path / "nowhere" / "table.json", TABLE)
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(ConfigurationError, match=r"cannot write .*folder\.json: Is a directory"):
        save_calibration(tmp_path / "folder.json", TABLE)
    assert [file.name for file in tmp_path.iterdir()] == ["folder.json"]


@given(st.integers(1, 60), st.integers(2, 60))
def test_resampled_as_the_authors_do(length: int, count: int) -> None:
    """The nearest index, halves to even, as numpy rounds; the same length changes nothing."""
    values = list(range(length))
    scale = (length - 1) / (count - 1)
    assert resample(values, count) == np.round(np.arange(count) * scale).astype(int).tolist()
    assert resample(values, length) == values


def test_resampled_to_one_step_is_the_last() -> None:
    assert resample([1, 2, 3], 1) == [3]
    for values, count in (([], 3), ([1], 0)):
        with pytest.raises(ConfigurationError, match="resample"):
            resample(values, count)


def test_a_file_for_another_model_is_refused(tmp_path: Path) -> None:
    """And taken by a pipeline of two models if it is for one of them."""
    path = str(tmp_path / "table.json")
    save_calibration(path, TABLE)
    other, fitting = SimpleNamespace(config={"num_layers": 5}), SimpleNamespace(config={"num_layers": 3})
    for models in ((), (fitting,), (other, fitting)):
        assert Calibrations(models=models).read("magcache", "names", path, len) == 2
    said = r"table .*table\.json is for a model with num_layers=3; this SimpleNamespace has num_layers=5\. Make one"
    with pytest.raises(ConfigurationError, match=said):
        Calibrations(models=(other,)).read("magcache", "names", path, len)


def test_a_table_that_a_policy_refuses_is_named() -> None:
    def refuse(value: Any) -> None:
        raise ConfigurationError(f"not {value}")

    with pytest.raises(ConfigurationError, match=r"the magcache table of a test, \[1, 2\]: not \['a  b'"):
        Calibrations({"magcache": TABLE}).read("magcache", "names", None, refuse)
    assert Calibrations().read("magcache", "names", None, refuse) is None
