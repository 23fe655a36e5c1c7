"""What settings name by a path: figures depend on what lies there, not on what it is called."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any


CHUNK = 1 << 22
PATHS = ("hypernet", "text", "bertscore_model", "sentence_model")


def contents(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Name of each setting that names a file or folder here, with a digest of what it holds."""
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from contents(value, f"{prefix}{name}.")
        elif name in PATHS and isinstance(value, str) and Path(value).exists():
            yield prefix + name, _digest(Path(value).resolve())


@cache
def _digest(path: Path) -> str:
    """sha256 over names and contents of the files, once in a run."""
    files = [path] if path.is_file() else sorted(one for one in path.rglob("*") if one.is_file())
    sha = sha256()
    for one in files:
        sha.update(f"{one.relative_to(path)}\0".encode())
        with one.open("rb") as stream:
            while chunk := stream.read(CHUNK):
                sha.update(chunk)
    return sha.hexdigest()
