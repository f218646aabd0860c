"""The settings a person makes in the environment, read and checked in one place (launchers.py reads what
launchers set).

    TREERING_SECRET        what all ranks of a job know and nobody else, at least 16 characters
    TREERING_SECRET_FILE   the same in a file, which only its owner may read or write (mode 0600 or 0400)
    TREERING_ADDRESS       the address (10.0.0.3) or network interface (eth1) on which this rank listens, or several:
                           "eth1,eth2" spreads the lanes over both
    XDG_CACHE_HOME         where what was measured is kept, in a folder treering; ~/.cache when it is not set
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["MIN_SECRET_BYTES", "Settings", "cache_directory", "check_secret", "read_settings"]

MIN_SECRET_BYTES = 16


@dataclass(frozen=True)
class Settings:
    """What was set; None for what was not."""

    secret: bytes | None = field(default=None, repr=False)
    address: str | None = None


def read_settings(environ: Mapping[str, str] | None = None) -> Settings:
    """The settings in `environ` (default: this process's). Raises ValueError that names the variable and what
    is wrong.
    """
    environ = os.environ if environ is None else environ
    text, path = environ.get("TREERING_SECRET"), environ.get("TREERING_SECRET_FILE")
    if text is not None and path is not None:
        raise ValueError("TREERING_SECRET and TREERING_SECRET_FILE are both set: unset one of them")
    secret = None
    if text is not None:
        secret = check_secret(text, "TREERING_SECRET")
    elif path is not None:
        secret = check_secret(_read_private(path), f"the file {path} (TREERING_SECRET_FILE)")
    return Settings(secret, environ.get("TREERING_ADDRESS") or None)


def cache_directory(environ: Mapping[str, str] | None = None) -> Path:
    """Where what was measured is kept between runs; it need not exist. A relative XDG_CACHE_HOME counts as not set,
    as the XDG Base Directory Specification wants it.
    """
    environ = os.environ if environ is None else environ
    base = environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(base):
        base = os.path.join(os.path.expanduser("~"), ".cache")
    return Path(base) / "treering"


def check_secret(secret: str | bytes, where: str = "secret") -> bytes:
    """The secret as bytes, without white space around it. Raises ValueError (without showing it) when it is
    too short.
    """
    raw = (secret.encode() if isinstance(secret, str) else secret).strip()
    if len(raw) < MIN_SECRET_BYTES:
        raise ValueError(
            f"{where} holds {len(raw)} characters, a secret needs at least {MIN_SECRET_BYTES}: "
            '`python -c "import secrets; print(secrets.token_hex(32))"` makes a good one'
        )
    return raw


def _read_private(path: str) -> bytes:
    try:
        with Path(path).open("rb") as file:
            state = os.fstat(file.fileno())
            content = file.read(64 << 10)
    except OSError as error:
        raise ValueError(f"TREERING_SECRET_FILE={path} cannot be read: {error.strerror}") from None
    if state.st_uid not in (os.geteuid(), 0) or state.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise ValueError(
            f"TREERING_SECRET_FILE={path} may be read or written by others (owner {state.st_uid}, mode "
            f"{stat.S_IMODE(state.st_mode):04o}): it must be yours, and `chmod 600 {path}`"
        )
    return content
