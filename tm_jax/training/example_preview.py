"""Previews of stages that learn from examples: held-out clips, sampled and decoded."""

import jax
import jax.numpy as jnp
import numpy as np

from tm_jax.configs import components
from tm_jax.configs import presets
from tm_jax.core import pixels
from tm_jax.media import video
from tm_jax.parallel import hosts
from tm_jax.training import example_source
from tm_jax.training import sources

_SHOWN = 4


class Preview:
    """See `sources.Preview`. Writes PATH.mp4: truth on the left, samples on the right.

    Attributes:
      batch: Stacked windows of the first held-out examples, each from the begin of its clip.
      batches: Of all of them, in stacks of that size.
    """

    def __init__(
        self, records: example_source.Records, preset: presets.Preset, latents: int,
        vae: dict | None = None,
    ):
        """Reads the examples.

        Args:
          records: Held-out examples.
          preset: Sizes.
          latents: Latent frames of a preview, a multiple of those of a chunk.
          vae: Parameters by part that decode; None: latents are measured and no video is
            written.

        Raises:
          ValueError: All of them are shorter than that, or they lack the pictures that the
            decoder needs.
        """
        source = example_source.ExampleSource(records, preset)
        chosen = [i for i in range(len(records)) if len(records[i]["mode"]) >= latents]
        if not chosen:
            raise ValueError(
                f"no held-out example has the {latents} latent frames of a preview; prepare "
                "longer clips, or train with fewer chunks."
            )
        sizes = sources.Sizes(example_source.sizes_of(records)[chosen])
        chosen = [chosen[i] for i in max(sizes.members.values(), key=len)]  # The commonest size.
        windows, count = [source.window(i, 0, latents) for i in chosen], min(_SHOWN, len(chosen))
        self.batches = [
            sources.collate(windows[at : at + count])
            for at in range(0, len(windows) - count + 1, count)
        ]
        self.batch = self.batches[0]
        self._preset, self._params = preset, vae
        self._vae = components.video_vae(preset)
        self._pictures = None
        if vae is not None and self._vae.decodes_beside_picture:
            if any("picture" not in records[i] for i in chosen):
                raise ValueError(
                    "examples have no picture, which the decoder of previews needs; prepare the "
                    f"videos with preset {preset.name}, or train without data.weights."
                )
            self._pictures = np.stack([records[i]["picture"] for i in chosen[:count]])
        self._begin = jax.jit(self._vae.begin_decoder)
        self._decode = jax.jit(self._frames)

    def _frames(self, params, latents, state):
        frames, state = self._vae.decode_chunk(params, latents, state)
        return pixels.to_uint8(frames), state

    def decode(self, index: int, x0: jax.Array | np.ndarray) -> np.ndarray:
        """Frames uint8 [F, H, W, 3] of the latents [T, H, W, C] of held-out clip `index`."""
        picture = None
        if self._pictures is not None:
            picture = pixels.to_float(jnp.asarray(self._pictures[index][None]))
        sink = jnp.asarray(self.batch["sink"][index][None], jnp.float32)
        state = self._begin(self._params, picture, sink)
        frames, c = [], self._preset.timing.latents_per_chunk
        for start in range(0, len(x0), c):
            piece = jnp.asarray(x0[None, start : start + c], jnp.float32)
            made, state = self._decode(self._params, piece, state)
            frames.append(np.asarray(made)[0])
        return np.concatenate(frames)

    def show(self, x0: jax.Array, path: str) -> dict[str, float]:
        """Writes samples and measures them against the truth, decoded by the same decoder.

        Args:
          x0: Samples [B, T, H, W, C].
          path: Path of the video without its extension.

        Returns:
          `latent_error`, the mean squared error of latents; and `psnr` in dB, where a decoder
          is there.
        """
        shown = hosts.gather(x0).astype(np.float32)
        truth = np.asarray(self.batch["x0"], np.float32)
        measures = {"latent_error": float(np.mean(np.square(shown - truth)))}
        if self._params is None or not hosts.is_first():
            return measures
        rows, errors = [], []
        for i, (made, true) in enumerate(zip(shown, truth)):
            pair = [self.decode(i, latents) for latents in (true, made)]
            errors.append(np.mean(np.square(np.subtract(*pair, dtype=np.float32) / 255)))
            rows.append(np.concatenate(pair, 2))
        frames = np.concatenate(rows, 1)
        timing, (height, width) = self._preset.timing, frames.shape[1:3]
        with video.Writer(
            path + ".mp4", timing.fps, height, width, timing.sample_rate, 1
        ) as writer:
            writer.write_frames(frames)
        return {**measures, "psnr": float(-10 * np.log10(np.mean(errors) + 1e-10))}
