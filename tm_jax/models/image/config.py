"""Sizes of the image encoder."""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class CLIPConfig:
    """Size of a CLIP vision tower.

    Attributes:
      width: Token width D.
      num_layers: Transformer layers.
      num_heads: Attention heads; must divide `width`.
      mlp_width: Hidden width of the feed-forward layers.
      picture: Side of the square picture in pixels.
      patch: Side of a patch in pixels; must divide `picture`.
      epsilon: Added to the variance in norms.
    """

    width: int
    num_layers: int
    num_heads: int
    mlp_width: int
    picture: int = 224
    patch: int = 14
    epsilon: float = 1e-5

    def __post_init__(self):
        if self.width % self.num_heads:
            raise ValueError(
                f"width={self.width} is not a multiple of num_heads={self.num_heads}."
            )
        if self.picture % self.patch:
            raise ValueError(
                f"picture={self.picture} is not a multiple of patch={self.patch}."
            )

    @property
    def tokens(self) -> int:
        """Tokens of a picture: its patches and the class token in front of them."""
        return 1 + (self.picture // self.patch) ** 2


PUBLISHED = {
    # The vision tower of open-clip-xlm-roberta-large-vit-huge-14, which is LAION's ViT-H/14;
    # Wan2.1's image-to-video models hold it as `image_encoder`.
    "vit-h-14": CLIPConfig(width=1280, num_layers=32, num_heads=16, mlp_width=5120),
}
