"""The README of transports/ shows the example as it is, and knows the kit's words."""

from __future__ import annotations

import re
from pathlib import Path

from transports import conformance

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "transports" / "README.md").read_text()


def test_the_example_is_shown_as_it_is() -> None:
    source = (ROOT / "examples" / "unix_socket_transport.py").read_text()
    shown = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert [block for block in shown if block.startswith(("class", "def"))] == [
        block for block in shown if block in source
    ]
    assert len([block for block in shown if block in source]) == 2


def test_every_file_and_check_that_it_names_is_there() -> None:
    for name in re.findall(r"`([a-z_/]+\.py)`", README):
        places = (ROOT / "transports", ROOT / "transports" / "conformance", ROOT)
        assert any((place / name).exists() for place in places), name
    named = re.findall(r"^(?:not checked|FAILED|passed) +([a-z ]+?)(?: \(|:|, because)", README, re.MULTILINE)
    assert len(named) == 3
    assert '"slow is not stuck"' in README
    assert {*named, "slow is not stuck"} <= {*conformance.CHECKS}
