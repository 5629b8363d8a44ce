"""Sizes of the text encoder."""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class UMT5Config:
    """Size of a UMT5 encoder.

    Attributes:
      vocab: Rows of the token table.
      width: Token width D.
      num_layers: Transformer layers.
      num_heads: Attention heads N.
      head_width: Width K of a head; N * K need not be `width`.
      mlp_width: Hidden width of the gated feed-forward layers.
      buckets: Classes of relative position, half of them for keys after the query.
      max_distance: Distance from which on all positions share the last bucket.
      epsilon: Added to the mean square in norms.
    """

    vocab: int
    width: int
    num_layers: int
    num_heads: int
    head_width: int
    mlp_width: int
    buckets: int = 32
    max_distance: int = 128
    epsilon: float = 1e-6

    def __post_init__(self):
        if self.buckets % 4:
            raise ValueError(f"buckets={self.buckets} must be a multiple of 4.")
        if self.max_distance <= self.buckets // 4:
            raise ValueError(
                f"max_distance={self.max_distance} must be above buckets / 4 = "
                f"{self.buckets // 4}, the distances that have a bucket of their own."
            )


PUBLISHED = {
    # google/umt5-xxl, the text encoder of every Wan2.1 model.
    "umt5-xxl": UMT5Config(
        vocab=256384, width=4096, num_layers=24, num_heads=64, head_width=64,
        mlp_width=10240,
    ),
}
