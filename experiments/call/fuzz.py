"""Looks for bytes that break a decoder, guided by what its code does (extra `fuzz`).

  python -m experiments.call.fuzz --target=picture --seconds=600

Ends with an error and a file `crash-...` in the current folder when it has found something.
"""

import pathlib
import tempfile

from absl import app
from absl import flags

_TARGET = flags.DEFINE_enum("target", "text", ["text", "binary", "picture", "sound"], "Decoder.")
_SECONDS = flags.DEFINE_integer("seconds", 60, "How long to look.", 1)


def main(argv: list[str]) -> None:
    """Runs one target."""
    import atheris

    with atheris.instrument_imports(include=["tm_jax", "PIL"]):
        from experiments.call import targets

    with tempfile.TemporaryDirectory() as folder:
        for index, example in enumerate(targets.examples()[_TARGET.value]):
            (pathlib.Path(folder) / str(index)).write_bytes(example)
        options = (
            f"-max_total_time={_SECONDS.value}", "-timeout=20", "-rss_limit_mb=2048",
            "-max_len=65536",
        )
        atheris.Setup([argv[0], *options, folder], targets.TARGETS[_TARGET.value])
        atheris.Fuzz()


if __name__ == "__main__":
    app.run(main)
