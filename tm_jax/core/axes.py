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

# Logical axis names of parameters, activations and caches. `parallel/rules.py`
# maps each of them to axes of the device mesh; nothing else may name a mesh axis.
BATCH = "batch"
FRAMES = "frames"  # latent frames
TOKENS = "tokens"  # tokens inside one latent frame or one chunk
CACHE = "cache"  # slots of a key/value cache
WIDTH = "width"  # residual stream, not split inside a layer
EMBED = "embed"  # input side of a weight matrix
HEADS = "heads"  # attention heads, or widths that are a multiple of them
MLP = "mlp"  # hidden width of a feed-forward layer
VOCAB = "vocab"  # rows of a table of tokens
CHANNELS_IN = "channels_in"  # input side of a convolution
CHANNELS_OUT = "channels_out"  # output side of a convolution

LOGICAL_AXES = (
    BATCH, FRAMES, TOKENS, CACHE, WIDTH, EMBED, HEADS, MLP, VOCAB,
    CHANNELS_IN, CHANNELS_OUT,
)
