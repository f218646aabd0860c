"""How stage 3 may partition and send besides, by the names of the papers (collectives/zero/movement.py)."""

from __future__ import annotations

from typing import Any

FORMS: dict[str, dict[str, Any]] = {
    "mics": {"partition": "host"},
    "hpz": {"secondary": "host"},
    "qwz": {"quantized_weights": 8},
    "qgz": {"quantized_gradients": 4},
    "zero++": {"secondary": "host", "quantized_weights": 8, "quantized_gradients": 4},
}
