"""Everything that is worn over the skin, chosen by the identity."""

import typing

from tm_jax.data.synthetic.people import clothes
from tm_jax.data.synthetic.people import hair
from tm_jax.data.synthetic.people import headwear
from tm_jax.data.synthetic.people import surfaces

if typing.TYPE_CHECKING:  # It builds figures with what this module makes.
    from tm_jax.data.synthetic.people import figure as figure_lib


def build(figure: "figure_lib.Figure") -> tuple[surfaces.Surface, ...]:
    """Hair, beard, clothes, headwear and glasses of a person without them."""
    identity = figure.identity
    worn = list(clothes.build(figure))
    if identity.hair == "hijab":
        worn += headwear.hijab(figure)
    elif identity.hair == "cap":
        worn += headwear.cap(figure) + hair.build(figure, below=7.75)
    elif identity.hair == "beanie":
        worn += headwear.beanie(figure) + hair.build(figure, below=7.60)
    else:
        worn += hair.build(figure)
    worn += hair.beard(figure)
    if identity.glasses:
        worn += headwear.glasses(figure)
    return tuple(worn)
