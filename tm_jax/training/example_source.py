"""Prepared examples of real or drawn videos as a source of clips, for any preset."""

from collections.abc import Mapping, Sequence
import dataclasses
import hashlib
import os
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np

from tm_jax.configs import presets
from tm_jax.data import manifest as manifest_lib
from tm_jax.data import remote
from tm_jax.data import shards
from tm_jax.models.dit import conditioning as conditioning_lib
from tm_jax.training import batches
from tm_jax.training import sources

# A clip after encoding, by name. The optional parts are there where the preset has them.
NAMES = ("latents", "condition", "face_mask", "audio", "mode")
OPTIONAL = ("text", "image", "negative_text")


class Records(Protocol):
    """Records by number."""

    def __len__(self) -> int:
        """Number of records."""
        ...

    def __getitem__(self, index: int, /) -> Mapping[str, np.ndarray]:
        """Arrays of one record by name; see `ExampleSource`."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExampleConfig:
    """Where examples are.

    Attributes:
      path: Store of examples: a folder, or the URL of one in an object store. Several with
        commas between them are mixed, each with its share of the samples behind "=":
        "real=3,drawn=1"; without it, 1. A folder of stores, one for each aspect ratio, counts
        as these, each with as large a share as it is.
      held_out: The last examples of each store, which are not trained on: previews show them.
      overheard: Share of the windows in which a listener's own sound has somebody else's
        voice, as from a microphone that hears the room: its mouth stays as it is.
      weights: Folder with the preset's autoencoder, which decodes previews; None: previews
        measure latents and write no video.
    """

    path: str = ""
    held_out: int = 4
    overheard: float = 0.4
    weights: str | None = None

    def __post_init__(self):
        if not 0 <= self.overheard <= 1:
            raise ValueError(f"overheard must be in 0..1, got {self.overheard}.")
        if self.held_out < 1:
            raise ValueError(f"held_out must be at least 1, got {self.held_out}.")


class Part:
    """Some records of a store, in their order."""

    def __init__(self, records: Records, indices: range):
        self._records, self._indices = records, indices

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Mapping[str, np.ndarray]:
        return self._records[self._indices[index]]

    @property
    def sizes(self) -> np.ndarray:
        """Rows and columns of the latents of each, [n, 2]."""
        return sizes_of(self._records)[self._indices.start : self._indices.stop]


def split(records: Records, held_out: int) -> tuple[Part, Part]:
    """The records to train on, and the last `held_out` ones.

    Raises:
      ValueError: There are too few.
    """
    count = len(records) - held_out
    if count < 1:
        raise ValueError(
            f"the store has {len(records)} examples, of which held_out={held_out} are not "
            "trained on; prepare more videos or hold out fewer."
        )
    return Part(records, range(count)), Part(records, range(count, len(records)))


class Store:
    """The records of a store that launch/prepare.py wrote.

    Attributes:
      sizes: Rows and columns of the latents of each, [n, 2].
    """

    def __init__(self, path: str):
        """Opens the store; see `shards.ExampleSource`."""
        self._source = shards.ExampleSource(path)
        size = self._source.schema.fields["latents"].sizes(1)[1:3]
        self.sizes = np.tile(np.array(size, np.int64), (len(self._source), 1))

    @property
    def fingerprint(self) -> str:
        """Of the settings and of all shards, by their sizes and counts."""
        manifest = self._source.manifest
        return manifest_lib.fingerprint(
            {"settings": manifest["settings"], "shards": manifest["shards"]}
        )

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Mapping[str, np.ndarray]:
        return {**self._source.constants, **self._source[index].arrays()}


class Joined:
    """Records of several stores, one after another; some more than once.

    Attributes:
      order: Of each record, the store and the number in it, [n, 2].
      sizes: Rows and columns of the latents of each, [n, 2].
    """

    def __init__(self, stores: Sequence[Records], order: np.ndarray):
        self._stores, self.order = stores, order
        self.sizes = np.empty((len(order), 2), np.int64)
        for index, store in enumerate(stores):
            here = order[:, 0] == index
            self.sizes[here] = sizes_of(store)[order[here, 1]]

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: int) -> Mapping[str, np.ndarray]:
        store, number = self.order[index]
        return self._stores[int(store)][int(number)]


def sizes_of(records: Records) -> np.ndarray:
    """Rows and columns of the latents of each record, [n, 2]; those in memory are looked at."""
    known = getattr(records, "sizes", None)
    if known is not None:
        return known
    found = [records[i]["latents"].shape[1:3] for i in range(len(records))]
    return np.array(found, np.int64).reshape(-1, 2)


def mixed(stores: Sequence[Records], shares: Sequence[float]) -> Joined:
    """Records in given shares: the store that has most for its share is taken once, the others
    are repeated until they have theirs.

    Raises:
      ValueError: A share is not above 0.
    """
    if min(shares) <= 0:
        raise ValueError(f"shares of stores must be above 0, got {list(shares)}.")
    scale = max(len(store) / share for store, share in zip(stores, shares))
    order = []
    for index, (store, share) in enumerate(zip(stores, shares)):
        numbers = np.arange(round(share * scale)) % len(store)
        order.append(np.stack([np.full_like(numbers, index), numbers], 1))
    return Joined(stores, np.concatenate(order))


def parse(path: str) -> list[tuple[str, float]]:
    """Stores and shares that `ExampleConfig.path` names.

    Raises:
      ValueError: A share is no number above 0.
    """
    if os.path.isdir(path):  # Whatever its name is.
        return [(path, 1.0)]
    found = []
    for one in path.split(","):
        place, equals, share = one.rpartition("=")
        try:
            value = float(share) if equals else 1.0
        except ValueError:
            value = 0.0
        if not value > 0:
            raise ValueError(f"examples {one!r}: expected STORE=SHARE with a share above 0.")
        found.append((place if equals else one, value))
    return found


def stores(path: str) -> list[Store]:
    """The stores that `ExampleConfig.path` names, opened.

    Raises:
      FileNotFoundError: There is no store.
      OSError: An object store cannot be read.
      ValueError: One is empty or damaged.
    """
    return [store for group, _ in _opened(path) for store in group]


def _opened(path: str) -> list[tuple[list[Store], float]]:
    """The stores of each place that a path names, and its share."""
    if not path:
        raise ValueError(
            "the transformer learns from prepared examples: name their folder with --data "
            "(launch/prepare.py makes it)."
        )
    found = []
    for place, share in parse(path):
        if not remote.is_url(place) and not os.path.isdir(place):
            raise FileNotFoundError(f"{place} has no examples; make them with launch/prepare.py.")
        found.append(([Store(one) for one in manifest_lib.stores(place)], share))
    return found


def open_records(path: str, held_out: int = 0) -> tuple[Records, Records]:
    """The records to train on, and those held out, of the stores that a path names.

    Raises:
      FileNotFoundError: There is no store.
      OSError: An object store cannot be read.
      ValueError: No place is named; a store is empty or damaged, or has too few records.
    """
    parts, shares = [], []
    for group, share in _opened(path):
        few = [len(store) // 2 if len(group) > 1 else held_out for store in group]
        found = [split(store, min(held_out, most)) for store, most in zip(group, few)]
        total = sum(len(train) for train, _ in found)
        parts += found
        shares += [share * len(train) / total for train, _ in found]
    if len(parts) == 1:
        return parts[0]
    rest = [part for _, part in parts]
    order = np.array([(i, n) for i, part in enumerate(rest) for n in range(len(part))], np.int64)
    return mixed([part for part, _ in parts], shares), Joined(rest, order.reshape(-1, 2))


def fingerprint(path: str) -> str:
    """What identifies the examples of a path: settings, files and sizes of its stores.

    Raises: See `stores`.
    """
    digests = [store.fingerprint for store in stores(path)]
    return hashlib.sha256("".join(digests).encode()).hexdigest()[:16]


class ExampleSource:
    """See `sources.Source`.

    A record is a dictionary of arrays: `latents` [1 + T, h, w, C], of which latent 0 is the
    reference picture; `condition` [1 + K, h, w, R], as in `components.Reference`, with the K
    exact latents of the frames after the picture; `face_mask` [P]; `audio` [T, R, U], windows
    as a stream computes them, of which window t belongs to latent 1 + t; `mode` [T]; and, where
    the preset has them, `partner_audio` as `audio`, `text` [L, D] and `image` [L, D].
    `negative_text` [L, D] replaces a dropped text (zeros without it). What a store has once for
    all its examples is in every record of it.

    Attributes:
      sizes: Sizes of the records' latents.
    """

    def __init__(self, records: Records, preset: presets.Preset, overheard: float = 0.0):
        """Checks the first record of each size.

        Args:
          records: Clips.
          preset: Sizes.
          overheard: See `ExampleConfig`.

        Raises:
          ValueError: A record does not belong to the preset.
        """
        self._records, self._preset, self._overheard = records, preset, overheard
        self._last: tuple[int, Mapping] | None = None
        self.sizes = sources.Sizes(sizes_of(records))
        for members in self.sizes.members.values():
            check(self._record(int(members[0])), preset)

    def __len__(self) -> int:
        return len(self._records)

    def _record(self, index: int) -> Mapping[str, np.ndarray]:
        """A record; the last one is kept, since `window` follows `place`."""
        last = self._last
        if last is None or last[0] != index:
            last = self._last = (index, self._records[index])
        return last[1]

    def place(self, index: int, rng: np.random.Generator, latents: int) -> tuple[int, int]:
        """See `sources.Source`.

        Raises:
          ValueError: No clip is long enough.
        """
        members = self.sizes.members[self.sizes[index]]
        first = int(np.searchsorted(members, index))
        for step in range(len(members)):
            chosen = int(members[(first + step) % len(members)])
            room = len(self._record(chosen)["mode"]) - latents
            if room >= 0:
                return chosen, int(rng.integers(0, room + 1))
        raise ValueError(
            f"no example is long enough for windows of {latents} latent frames after the "
            "picture; prepare longer clips, or train with fewer chunks."
        )

    def window(self, index: int, start: int, latents: int) -> dict[str, np.ndarray]:
        """See `sources.Source`."""
        record = self._record(index)
        cut = slice(start, start + latents)
        items = {
            "sink": record["latents"][0], "x0": record["latents"][1:][cut],
            "audio": self._heard(record, index, cut), "mode": record["mode"][cut],
            "condition": record["condition"], "face_mask": record["face_mask"],
        }
        if len(items["condition"]) > 1:  # Those of the window, and what a stream settles at.
            condition = items["condition"]
            items["condition"] = np.concatenate([condition[: 1 + latents], condition[-1:]])
        if self._preset.dit.partner_audio:
            items["partner_audio"] = record["partner_audio"][cut]
        items |= {name: record[name] for name in OPTIONAL if name in record}
        return {name: np.asarray(value) for name, value in items.items()}

    def _heard(self, record: Mapping[str, np.ndarray], index: int, cut: slice) -> np.ndarray:
        """Windows of sound [latents, R, U], in some of which a listener overhears a voice.

        A window is always the same, so that trajectories fit it.
        """
        own, listens = record["audio"][cut], record["mode"][cut] == 0
        rng = np.random.default_rng((index, cut.start))
        if not listens.any() or rng.random() >= self._overheard:
            return own
        other = self._records[int(rng.integers(len(self._records)))]["audio"]
        at = int(rng.integers(max(1, len(other) - len(own) + 1)))
        other = np.resize(other[at : at + len(own)], own.shape)  # Repeated if it is short.
        return np.where(listens[:, None, None], other, own)

    def assemble(self, items: dict[str, jax.Array]) -> batches.Batch:
        """See `assemble`."""
        return assemble(self._preset, items)


def assemble(preset: presets.Preset, items: dict[str, jax.Array]) -> batches.Batch:
    """The batch of stacked windows.

    A window is a clip of its own, whose conditioning channels begin at the picture; a stream
    has, after the sink, those of a frame long after it (`conditioning.channels`).

    Args:
      preset: Sizes.
      items: Stacked results of `ExampleSource.window`.
    """
    items = {
        name: jnp.asarray(value, jnp.int32 if name == "mode" else jnp.float32)
        for name, value in items.items()
    }
    frames, condition, kind = items["x0"].shape[1], items["condition"], preset.conditioning
    channels = conditioning_lib.channels(kind, condition, 1 + frames)
    settled = conditioning_lib.channels(kind, condition[:, -1:], 1, first=1)
    given = conditioning_lib.Conditioning(
        channels=channels, audio=items["audio"], partner_audio=items.get("partner_audio"),
        mode=items["mode"], face_mask=items["face_mask"],
        text=items.get("text"), image=items.get("image"),
    ).after_sink()
    return batches.Batch(
        x0=items["x0"], sink=items["sink"], conditioning=given,
        stream_channels=jnp.concatenate([channels[:, :1], settled], 1),
        negative_text=items.get("negative_text"),
    )


def check(record: Mapping[str, np.ndarray], preset: presets.Preset) -> None:
    """Compares a record with a preset, which may be of another aspect ratio.

    Raises:
      ValueError: A part is missing, or of another shape.
    """
    preset = _of_aspect(record, preset)
    c, (height, width, channels) = preset.dit, preset.latent_shape
    wanted: dict[str, tuple[int | None, ...]] = {
        "latents": (None, height, width, channels), "condition": (None, height, width, None),
        "face_mask": (preset.tokens,), "audio": (None, c.audio_window, c.audio_feature_width),
        "mode": (None,),
    }
    if c.partner_audio:
        wanted["partner_audio"] = wanted["audio"]
    if c.text_width is not None:
        wanted["text"] = (c.text_length, c.text_width)
    if c.image_width is not None:
        wanted["image"] = (c.image_length, c.image_width)
    remedy = f"prepare the videos with preset {preset.name}."
    for name, shape in wanted.items():
        if name not in record:
            raise ValueError(f"examples have no {name}, which the preset needs; {remedy}")
        got = record[name].shape
        if len(got) != len(shape) or any(w not in (None, g) for w, g in zip(shape, got)):
            raise ValueError(
                f"examples: {name} must have shape {_text(shape)}, got {got}; {remedy}"
            )
    frames = len(record["mode"])
    lengths = {"latents": 1 + frames, "audio": frames, "partner_audio": frames}
    for name, count in ((n, lengths[n]) for n in wanted if n in lengths):
        if len(record[name]) != count:
            raise ValueError(
                f"examples: {name} must have {count} entries beside {frames} modes, got "
                f"{len(record[name])}; {remedy}"
            )


def _of_aspect(record: Mapping[str, np.ndarray], preset: presets.Preset) -> presets.Preset:
    """The preset in the aspect ratio of a record, if it has one in which the record fits."""
    shape = record["latents"].shape if "latents" in record else ()
    if len(shape) != 4 or not 0.25 <= shape[2] / shape[1] <= 4:
        return preset
    found = presets.with_aspect(preset, shape[2] / shape[1])
    return found if found.latent_shape[:2] == shape[1:3] else preset


def _text(shape: tuple[int | None, ...]) -> str:
    return "(" + ", ".join("any" if size is None else str(size) for size in shape) + ")"
