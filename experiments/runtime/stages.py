"""One row of figure 3: the stages of a chunk alone, and as the engine overlaps them.

Started by `run.py` in a process of its own for each number of devices.
"""

import dataclasses
import io
import json
import statistics
import sys
import time

import av
import jax
import numpy as np

from experiments.accelerator import measure as accelerator
from experiments.parity import reduced
from tm_jax.configs import presets
from tm_jax.inference import pipeline as pipeline_lib
from tm_jax.inference import streams

_DEPTH = 2  # Chunks under way, as in the engine.


def preset(name: str, full: bool, changes: dict) -> presets.Preset:
    """A preset, at reduced depth and width where it could not run here."""
    found = presets.get(name)
    if not full and found.image is not None or not full and name == "wan-1.3b":
        found = reduced.sizes(name, layers=2, width=256)
    student = {k: v for k, v in changes.items() if k in ("num_steps", "policy")}
    found = found.with_student(**student)
    side = changes.get("side")
    return dataclasses.replace(found, height=side, width=side) if side else found


class Bench:
    """A pipeline with one batch of streams that goes on from chunk to chunk."""

    def __init__(self, pipeline: pipeline_lib.Pipeline, batch: int):
        self.pipeline, self.batch = pipeline, batch
        p, rng = pipeline.preset, np.random.default_rng(0)
        picture = rng.integers(0, 256, (1, p.height, p.width, 3), np.uint8)
        start, state, decoder = pipeline.begin(picture, np.zeros((1, 2), np.uint32))
        self.start = pipeline.spread(start, batch)
        self.state = pipeline.spread(state, batch)
        self.decoder = pipeline.spread(decoder, batch, decoder=True)
        count = pipeline.before + p.timing.samples_per_chunk + pipeline.after
        self.samples = 0.1 * rng.standard_normal((batch, count)).astype(np.float32)
        self.mode = np.ones((batch, p.timing.latents_per_chunk), np.int32)
        self.windows, _ = pipeline.encode_audio(self.samples)
        self.latents, self.frames = None, None
        self.denoise()
        self.moved = pipeline.move(self.latents)
        self.decode()

    def audio(self):
        self.windows, _ = self.pipeline.encode_audio(self.samples)
        return self.windows

    def denoise(self):
        self.latents, self.state = self.pipeline.denoise(
            self.state, self.start, self.windows, self.mode
        )
        return self.latents

    def transfer(self):
        self.moved = self.pipeline.move(self.latents)
        return self.moved

    def decode(self):
        self.frames, self.decoder = self.pipeline.decode(self.moved, self.decoder)
        return self.frames

    def chunk(self):
        """Dispatches a whole chunk and returns its frames at once."""
        self.audio()
        self.denoise()
        self.transfer()
        return self.decode()


def _alone(work, repeats: int) -> float:
    """Median milliseconds of a stage that nothing else runs beside."""
    return accelerator.median_ms(lambda: jax.block_until_ready(work()), repeats)[0]


def encode_ms(frames: np.ndarray, fps: int) -> float:
    """Milliseconds to encode the frames of one chunk as H.264."""
    with av.open(io.BytesIO(), "w", format="mp4") as container:
        stream = container.add_stream("h264", fps, {"preset": "veryfast"})
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        spent = []
        for _ in range(5):
            began = time.perf_counter()
            for frame in frames:
                for packet in stream.encode(av.VideoFrame.from_ndarray(frame)):
                    container.mux(packet)
            spent.append(time.perf_counter() - began)
        for packet in stream.encode():
            container.mux(packet)
    return 1e3 * statistics.median(spent)


def _flow(bench: Bench, chunks: int) -> tuple[float, float]:
    """(milliseconds a chunk, of them the host waited) with chunks dispatched ahead."""
    pending, waited, began = [], 0.0, time.perf_counter()
    for _ in range(chunks):
        pending.append(bench.chunk())
        if len(pending) >= _DEPTH:
            start = time.perf_counter()
            np.asarray(pending.pop(0))
            waited += time.perf_counter() - start
    for frames in pending:
        np.asarray(frames)
    return 1e3 * (time.perf_counter() - began) / chunks, 1e3 * waited / chunks


def _independent(bench: Bench, chunks: int) -> float:
    """Milliseconds a chunk if decoding never waits for latents: what the machine allows."""
    began = time.perf_counter()
    pending = []
    for _ in range(chunks):
        bench.audio()
        pending.append((bench.denoise(), bench.decode()))  # Of the same latents again and again.
        if len(pending) >= _DEPTH:
            jax.block_until_ready(pending.pop(0))
    jax.block_until_ready(pending)
    return 1e3 * (time.perf_counter() - began) / chunks


def measure(case: dict) -> dict:
    """A row."""
    found = preset(case["preset"], case["full"], case.get("changes", {}))
    functions = streams.StreamFunctions(found)
    sequence = case["sequence"]
    placement = pipeline_lib.Placement(mode=case["layout"], sequence=sequence)
    pipeline = pipeline_lib.on_first_device(functions, accelerator.draw(functions))
    devices = jax.devices()[: case["devices"]]
    if len(devices) > 1:
        pipeline = pipeline.placed(placement, devices)
    bench = Bench(pipeline, case.get("batch", 1) * pipeline.shares)
    repeats = case["repeats"]
    stages = {
        name: _alone(getattr(bench, name), repeats)
        for name in ("audio", "denoise", "transfer", "decode")
    }
    _flow(bench, 2)
    flows = [_flow(bench, repeats) for _ in range(3)]
    chunk, wait = statistics.median(f[0] for f in flows), statistics.median(f[1] for f in flows)
    free = statistics.median(_independent(bench, repeats) for _ in range(3))
    total = sum(stages.values())
    timing = found.timing
    row = {
        **{k: case[k] for k in ("preset", "layout", "devices")},
        "sequence_parallel": sequence > 1, "streams": bench.batch,
        "layers": found.dit.num_layers, "width": found.dit.width, "side": found.height,
        "steps": found.student.num_steps, "policy": found.student.policy,
        **{f"{name}_ms": round(value, 2) for name, value in stages.items()},
        "wait_ms": round(wait, 2),
        "encode_ms": round(encode_ms(np.asarray(bench.frames)[0], timing.fps), 2),
        "chunk_ms": round(chunk, 2), "overlap_efficiency": round(total / chunk, 3),
        "allowed_overlap": round(total / free, 3),
        "share_of_allowed": round(free / chunk, 3),
        "frames_per_s": round(1e3 * bench.batch * timing.frames_per_chunk / chunk, 1),
    }
    if case.get("length"):
        row["denoise_ms_by_position"] = _by_position(bench, case["length"])
    return row


def _by_position(bench: Bench, length: int) -> dict[str, float]:
    """Median milliseconds of denoising, which alone has a past: chunks 5 to 25, and the last."""
    spent = []
    for _ in range(length):
        began = time.perf_counter()
        bench.denoise().block_until_ready()
        spent.append(1e3 * (time.perf_counter() - began))
    return {
        "10": round(statistics.median(spent[5:25]), 3),
        str(length): round(statistics.median(spent[-100:]), 3),
    }


if __name__ == "__main__":
    for line in sys.stdin:
        if line.strip():
            print("ROW " + json.dumps(measure(json.loads(line))), flush=True)
            jax.clear_caches()
