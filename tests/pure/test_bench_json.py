"""The JSON has the keys of nccl-tests' version 3, and the comparison beside them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench.jsonfile import report, write
from bench.roof import Roof
from bench.table import Compared, Measured, Row

RIGHT = Row(1024, 256, "float32", "sum", -1, Measured(10.0, 0.1, 0.15, 0), Measured(9.0, 0.11, 0.17, 0), "ring", 20)


def document(**changes: Any) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "start_time": "2026-01-02 03:04:05",
        "end_time": "2026-01-02 03:04:06",
        "args": ["all_reduce", "-b", "1K"],
        "environment": {
            "TREERING_RANK": "0",
            "TREERING_SECRET": "hush",
            "TREERING_SECRET_FILE": "s",
            "AWS_KEY": "hush",
        },
        "config": {"iterations": 20, "devices": [{"rank": 0, "hostname": "a"}]},
        "rows": [RIGHT],
        "compared": None,
        "about": {"cpu": "a processor"},
        "roof": Roof("memory copy", "how", ((1024, 12.5),)),
    }
    return json.loads(json.dumps(report(**{**arguments, **changes})))


def test_keys_are_those_of_nccl_tests() -> None:
    made = document()
    assert made["version"] == 3
    assert set(made) == {
        "version", "start_time", "end_time", "args", "env", "nccl_version", "config", "results",
        "out_of_bounds", "average_bus_bandwidth", "errors", "treering",
    }  # fmt: skip
    assert made["results"] == [
        {
            "size": 1024,
            "count": 256,
            "type": "float",
            "redop": "sum",
            "root": "-1",
            "out_of_place": {"time": 10.0, "alg_bw": 0.1, "bus_bw": 0.15, "nwrong": 0.0},
            "in_place": {"time": 9.0, "alg_bw": 0.11, "bus_bw": 0.17, "nwrong": 0.0},
            "actual_iterations": 20,
            "experiment_name": "ring",
        }
    ]
    assert made["out_of_bounds"] == {"count": 0, "okay": "true"}
    assert made["average_bus_bandwidth"] == {"bandwidth": pytest.approx(0.16), "okay": "unchecked"}


def test_what_we_add_has_a_version_of_its_own() -> None:
    assert document()["treering"] == {
        "schema": 1,
        "cpu": "a processor",
        "roof": {"name": "memory copy", "what": "how", "points": [{"size": 1024, "bus_bw": 12.5}]},
    }
    assert document(roof=None)["treering"]["roof"] is None


def test_a_prediction_stands_in_its_row() -> None:
    assert "predicted_us" not in document()["results"][0]
    assert document(rows=[RIGHT._replace(predicted_us=8.5)])["results"][0]["predicted_us"] == 8.5


def test_wrong_data_is_not_okay() -> None:
    wrong = RIGHT._replace(in_place=Measured(1.0, 1.0, 1.0, 7))
    assert document(rows=[RIGHT, wrong])["out_of_bounds"] == {"count": 7, "okay": "false"}


def test_what_was_not_measured_or_checked_is_null() -> None:
    row = RIGHT._replace(out_of_place=Measured(1.0, 1.0, 1.0, None), in_place=None)
    result = document(rows=[row])["results"][0]
    assert result["in_place"] is None
    assert result["out_of_place"]["nwrong"] is None


def test_comparison_has_a_key_per_contender() -> None:
    compared = [Compared(16, "auto", 1.5, {"gloo": 300.0, "openmpi": 2.0})]
    assert document(compared=compared)["compare"] == [
        {"size": 16, "algorithm": "auto", "ours_us": 1.5, "gloo_us": 300.0, "openmpi_us": 2.0}
    ]


def test_the_environment_is_told_without_secrets() -> None:
    assert document()["env"] == ["TREERING_RANK=0"]


def test_writing_replaces_the_file_at_once(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    path.write_text("before")
    write(str(path), {"version": 3})
    assert json.loads(path.read_text()) == {"version": 3}
    assert [entry.name for entry in tmp_path.iterdir()] == ["out.json"]


def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="nowhere"):
        write(str(tmp_path / "nowhere" / "out.json"), {})
