"""The strict table from published tensors of the tiny autoencoder to `TAEHV`.

Names are those of `taew2_1.pth` (`taehv.py` of madebyollin/taehv): both halves are sequences,
so a tensor's name is the position of its layer.
"""

from tm_jax.checkpoints import mapping
from tm_jax.models.vae.tiny import config as config_lib

LAYOUTS = ("original",)
IGNORED = {"original": ()}  # Every published tensor is used.


def _blocks(source, start, target, count):
    """Blocks with memory at the positions from `start` on."""
    return [
        row
        for i in range(count)
        for n in range(3)
        for row in mapping.convolution(
            f"{source}.{start + i}.conv.{2 * n}", f"{target}_block_{i}/conv_{n}", 2
        )
    ]


def rows(config: config_lib.TAEHVConfig, layout: str = "original") -> list[mapping.Row]:
    """The table of one size: (source name, our path, kind) of every tensor.

    Raises:
      ValueError: Unknown layout.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"layout must be one of {LAYOUTS}, got {layout!r}.")
    n, stages = config.num_blocks, len(config.encoder_pools)
    table = mapping.convolution("encoder.0", "encoder/entry", 2)
    for stage in range(stages):
        at, ours = 2 + stage * (n + 2), f"encoder/stage_{stage}"
        table.append((f"encoder.{at}.conv.weight", f"{ours}_pool/kernel", "pointwise2d"))
        table += mapping.convolution(f"encoder.{at + 1}", f"{ours}_down", 2, bias=False)
        table += _blocks("encoder", at + 2, ours, n)
    table += mapping.convolution(f"encoder.{2 + stages * (n + 2)}", "encoder/exit", 2)

    table += mapping.convolution("decoder.1", "decoder/entry", 2)
    for stage in range(stages):
        at, ours = 3 + stage * (n + 3), f"decoder/stage_{stage}"
        table += _blocks("decoder", at, ours, n)  # Repeated pixels follow at `at + n`.
        grow = f"decoder.{at + n + 1}.conv.weight"
        table.append((grow, f"{ours}_grow/kernel", "pointwise2d"))
        table += mapping.convolution(f"decoder.{at + n + 2}", f"{ours}_out", 2, bias=False)
    table += mapping.convolution(f"decoder.{4 + stages * (n + 3)}", "decoder/exit", 2)
    return table


def settings(config: config_lib.TAEHVConfig, layout: str) -> None:
    """None: the published file stands alone."""
    del config, layout
