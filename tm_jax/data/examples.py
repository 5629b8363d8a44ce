"""What one training example holds, for every preset and every stage, and its bytes.

An example is a clip after encoding. Parts that a preset lacks are absent, never filled with
dummies. A `Schema` lists the parts of a store with their shapes and types; it stands in the
store's manifest, and every record is checked against it.
"""

from collections.abc import Mapping
import dataclasses
import re
from typing import NamedTuple

import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy

_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


class Example(NamedTuple):
    """One clip of 1 + 4 T frames, encoded; a batch of them has a leading axis on every array.

    Attributes:
      latents: Video, [1 + T, h, w, C]; latent 0 is the reference picture.
      condition: What conditioning channels are made of (`models/dit/conditioning.channels`),
        [1 + K, h, w, R]; R may be 0. With image-to-video conditioning entries 0 ... T are the
        latents of the picture and the empty frames after it, the last is where these settle.
      face_mask: How strongly each token listens to the sound, float32 [P] in 0..1.
      audio: Windows of features of the character's voice, [T, R, U], as a stream computes
        them; window t belongs to latent 1 + t.
      mode: 1 where the character speaks, 0 where it listens, int8 [T].
      partner_audio: Windows of the other party's voice, as `audio`; absent as None.
      text: Tokens of the text encoder, [L, D], of a clip with a prompt of its own; absent as None.
      image: Tokens of the image encoder, [L, D]; absent as None.
      picture: The reference picture, uint8 [H, W, 3], where the decoder needs it; absent as None.
    """

    latents: np.ndarray
    condition: np.ndarray
    face_mask: np.ndarray
    audio: np.ndarray
    mode: np.ndarray
    partner_audio: np.ndarray | None = None
    text: np.ndarray | None = None
    image: np.ndarray | None = None
    picture: np.ndarray | None = None

    def arrays(self) -> dict[str, np.ndarray]:
        """The parts that are there, by name."""
        return {name: part for name, part in self._asdict().items() if part is not None}


class Field(NamedTuple):
    """Shape and type of one part.

    Attributes:
      shape: Sizes; one that depends on the clip's latent frames T is a string "a+bT".
      dtype: Name of the type.
    """

    shape: tuple[int | str, ...]
    dtype: str

    def sizes(self, latents: int) -> tuple[int, ...]:
        """The shape at T = `latents`."""
        return tuple(size if isinstance(size, int) else _size(size, latents) for size in self.shape)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Schema:
    """The parts of all examples of a store.

    Attributes:
      fields: Shape and type of each part, by name, in the order of `Example`.
    """

    fields: Mapping[str, Field]

    @classmethod
    def of(cls, example: Example) -> "Schema":
        """The schema of one example.

        Raises:
          ValueError: The parts do not belong to one clip.
        """
        first = {"latents": "1+T", "mode": "T", "audio": "T", "partner_audio": "T"}
        if len(example.condition) == len(example.latents) + 1:
            first["condition"] = "2+T"
        fields = {}
        for name, part in example.arrays().items():
            shape = part.shape if name not in first else (first[name], *part.shape[1:])
            fields[name] = Field(tuple(shape), part.dtype.name)
        schema = cls(fields=fields)
        schema.check(example, "the example")
        return schema

    def check(self, example: Example, name: str) -> None:
        """Compares an example with the schema.

        Raises:
          ValueError: A part is missing, unexpected, or of another shape or type.
        """
        arrays = example.arrays()
        if arrays.keys() != self.fields.keys():
            raise ValueError(
                f"{name}: expected the parts {', '.join(self.fields)}, got {', '.join(arrays)}."
            )
        latents = len(example.mode)
        for part, field in self.fields.items():
            expected, array = field.sizes(latents), arrays[part]
            if array.shape != expected or array.dtype.name != field.dtype:
                raise ValueError(
                    f"{name}: {part} must be {field.dtype} {_text(field.shape)} with T={latents}, "
                    f"got {array.dtype.name} {list(array.shape)}."
                )

    def require(self, other: "Schema", name: str) -> None:
        """Explains how this schema, that of a store, differs from the one that is needed.

        Raises:
          ValueError: They differ.
        """
        for part in dict.fromkeys([*other.fields, *self.fields]):
            has, needs = self.fields.get(part), other.fields.get(part)
            if has != needs:
                raise ValueError(
                    f"{name}: {part} is {_describe(has)}, but {_describe(needs)} is needed; "
                    "prepare the videos with this preset."
                )

    def to_json(self) -> dict:
        """The schema as it stands in a manifest."""
        fields = {
            name: {"shape": list(field.shape), "dtype": field.dtype}
            for name, field in self.fields.items()
        }
        return {"fields": fields}

    @classmethod
    def from_json(cls, data: dict) -> "Schema":
        """The inverse of `to_json`."""
        fields = {
            name: Field(tuple(field["shape"]), field["dtype"])
            for name, field in data["fields"].items()
        }
        return cls(fields=fields)


def to_bytes(example: Example) -> bytes:
    """A record: the parts in the safetensors format; equal examples give equal bytes."""
    return safetensors.numpy.save({
        name: np.ascontiguousarray(_storable(part)) for name, part in example.arrays().items()
    })


def from_bytes(record: bytes, schema: Schema, name: str = "the record") -> Example:
    """The example of a record.

    Raises:
      ValueError: It is damaged, or another schema's.
    """
    try:
        arrays = safetensors.numpy.load(record)
        for part, field in schema.fields.items():
            if field.dtype == "bfloat16" and arrays[part].dtype == np.uint16:
                arrays[part] = arrays[part].view(_BFLOAT16)
        example = Example(**arrays)
    except (safetensors.SafetensorError, KeyError, TypeError) as error:
        raise ValueError(f"{name} is damaged or of another format: {error}.") from error
    schema.check(example, name)
    return example


def _storable(part: np.ndarray) -> np.ndarray:
    """safetensors reads bfloat16 into NumPy not at all: its bits are stored."""
    return part.view(np.uint16) if part.dtype == _BFLOAT16 else part


def _size(text: str, latents: int) -> int:
    match = re.fullmatch(r"(?:(\d+)\+)?(\d*)T", text)
    if not match:
        raise ValueError(f"a size must be a number or like 1+4T, got {text!r}.")
    return int(match[1] or 0) + int(match[2] or 1) * latents


def _text(shape) -> str:
    return f"[{', '.join(str(size) for size in shape)}]"


def _describe(field: Field | None) -> str:
    return "absent" if field is None else f"{field.dtype} {_text(field.shape)}"
