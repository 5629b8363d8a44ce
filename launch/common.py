"""What launchers share: one-line errors, clean interruption, the compilation cache."""

import signal
import sys
import tempfile
from collections.abc import Callable

from absl import app
from absl import flags
from absl import logging


def run(name: str, main: Callable[[], None]) -> None:
    """Parses the flags and runs a launcher's work.

    Whatever a user can get wrong ends as one line on stderr and exit code 1. Ctrl-C ends
    with 130, a request to terminate with 143 and a closed terminal with 129 (unless nohup
    is used), all after the work has cleaned up.

    Args:
      name: Name of the launcher, which opens its error lines.
      main: The work, after the flags are parsed.
    """

    def parse(argv: list[str]) -> list[str]:
        try:
            rest = flags.FLAGS(argv)
        except flags.Error as error:
            sys.exit(f"{name}: {_one_line(error)} (--help lists the flags)")
        if len(rest) > 1:
            sys.exit(f"{name}: unexpected argument {rest[1]!r} (--help lists the flags)")
        return rest

    app.run(lambda argv: guard(name, main), flags_parser=parse)


def guard(name: str, main: Callable[[], None]) -> None:
    """Runs `main` and turns its errors into an exit code, as `run` says."""
    logging.set_verbosity(logging.WARNING)
    before = {}
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) == signal.SIG_DFL:
            before[number] = signal.signal(number, _terminate)
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"{name}: {_one_line(error)}")
    except KeyboardInterrupt:
        print(f"\n{name}: interrupted", file=sys.stderr)
        sys.exit(130)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def cache_compilations() -> None:
    """Keeps compiled programs in $TM_JAX_CACHE, else in ~/.cache/tm_jax."""
    import jax  # Takes seconds; a wrong flag is reported before.

    from tm_jax.core import cache

    folder = cache.folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        logging.warning("Compiled programs are not kept: %s.", error)
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def numbers(name: str, text: str, separator: str, count: int) -> tuple[float, ...]:
    """The numbers of a flag's text; a wrong text is an error that names the flag."""
    try:
        numbers = tuple(float(number) for number in text.split(separator))
    except ValueError:
        numbers = ()
    if len(numbers) != count:
        raise ValueError(
            f"--{name}: expected {count} numbers with {separator!r} between them, got {text!r}."
        )
    return numbers


def mesh_flag() -> flags.FlagHolder[str]:
    """Defines --mesh, the same for every launcher; see `mesh_flag.parse` and `mesh`."""
    return flags.DEFINE_string(
        "mesh", "", "Sizes of the mesh axes data, fsdp, seq and tensor, e.g. fsdp=8,seq=2; data "
        "takes the devices that are left. Empty: all devices on data.",
    )


def attention_flag() -> flags.FlagHolder[str | None]:
    """Defines --attention; see `tm_jax.nn.attention`."""
    return flags.DEFINE_enum(
        "attention", None, ["auto", "xla", "cudnn", "splash"], "wan-1.3b, tm-18b: how "
        "self-attention is computed: by XLA; by cuDNN (NVIDIA GPUs, bfloat16); by splash attention "
        "(TPUs). auto is XLA.",
    )


def matrices_flag() -> flags.FlagHolder[str | None]:
    """Defines --matrices; see `tm_jax.nn.quantization`."""
    return flags.DEFINE_enum(
        "matrices", None, ["full", "int8", "float8"], "wan-1.3b, tm-18b: how the transformer's "
        "matrices are kept: as they are; in 8 bits (int8); in 8 bits and multiplied so (float8).",
    )


def mesh(text: str):
    """The mesh of a --mesh flag over all devices; None for an empty one.

    Raises:
      ValueError: Unknown axes, or sizes that do not fit the number of devices.
    """
    import jax  # Takes seconds; a wrong flag is reported before.

    from tm_jax.parallel import mesh_flag as parser
    from tm_jax.parallel import rules

    return rules.make_mesh(**parser.parse(text, len(jax.devices()))) if text else None


def mesh_sizes(text: str) -> dict[str, int]:
    """The named axes of a --mesh flag, whatever devices there are.

    Raises:
      ValueError: Unknown axes or sizes.
    """
    if not text:
        return {}
    from tm_jax.parallel import mesh_flag as parser

    return parser.sizes(text)


def aspect(text: str | None) -> float | None:
    """Width over height of a text such as 9:16; None for none."""
    if text is None:
        return None
    width, height = numbers("aspect", text, ":", 2)
    if min(width, height) <= 0:
        raise ValueError(f"--aspect: expected two numbers above 0, got {width:g}:{height:g}.")
    return width / height


def _terminate(number: int, frame) -> None:
    del frame
    sys.exit(128 + number)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
