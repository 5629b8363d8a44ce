"""Where this package keeps what it can make or fetch again."""

import os
import pathlib


def folder() -> pathlib.Path:
    """$TM_JAX_CACHE, else ~/.cache/tm_jax."""
    named = os.environ.get("TM_JAX_CACHE")
    return pathlib.Path(named) if named else pathlib.Path("~/.cache/tm_jax").expanduser()
