"""The one legend of axis letters that every shape in this package uses.

Letters stand in docstrings and in `shapes.check` specifications.

| letter | axis |
|---|---|
| B | batch |
| F | pixel frames (video frames at the preset's frame rate) |
| T | latent frames |
| H, W | height and width: of latents, or of pixels where F stands beside them |
| C | channels |
| P | tokens per latent frame |
| L | tokens of a whole sequence or of a context |
| S | cache slots (tokens that a cache holds) |
| N | attention heads |
| K | width of one head |
| D | token width |
| A | audio tokens per latent frame |
| E | width of one audio token |
| R | audio feature frames in one window |
| U | width of one audio feature frame |
| M | columns of a motion vector |
"""

from collections.abc import Mapping, Sequence

# Logical axis names of parameters, activations and caches. `parallel/rules.py`
# maps each of them to axes of the device mesh; nothing else may name a mesh axis.
BATCH = "batch"
FRAMES = "frames"  # latent frames
TOKENS = "tokens"  # tokens inside one latent frame or one chunk
CACHE = "cache"  # slots of a key/value cache
WIDTH = "width"  # residual stream, not split inside a layer
EMBED = "embed"  # input side of a weight matrix
HEADS = "heads"  # attention heads, or widths that are a multiple of them
SPREAD = "spread"  # attention heads inside self-attention, where tokens are not split
MLP = "mlp"  # hidden width of a feed-forward layer
VOCAB = "vocab"  # rows of a table of tokens
CHANNELS_IN = "channels_in"  # input side of a convolution
CHANNELS_OUT = "channels_out"  # output side of a convolution

LOGICAL_AXES = (
    BATCH, FRAMES, TOKENS, CACHE, WIDTH, EMBED, HEADS, SPREAD, MLP, VOCAB,
    CHANNELS_IN, CHANNELS_OUT,
)


def dividing(size: int, names: Sequence[str], parts: Mapping[str, int]) -> tuple[str, ...]:
    """The mesh axes that split an array axis evenly, the first that do.

    Args:
      size: Length of the array axis.
      names: Mesh axes that the rules table gives it, in order.
      parts: Size of every mesh axis.

    Returns:
      The longest begin of `names` whose sizes together divide `size`; empty if there is none.
    """
    total = 1
    for count, name in enumerate(names):
        total *= parts[name]
        if size % total:
            return tuple(names[:count])
    return tuple(names)
