"""The reader of TOML files, which Python 3.10 has under another name."""

from __future__ import annotations

import sys


if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


loads = tomllib.loads
