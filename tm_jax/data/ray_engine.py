"""Reads and encodes videos on the machines of a Ray cluster: an engine of `prepare`.

Ray Data runs two operators: actors that cut files into clips, and actors that hold the encoders,
one for each GPU if there are some. Results come back in the files' order to the process that
writes, so that the store is the same as without a cluster.
"""

from collections.abc import Callable, Iterator
import dataclasses
import itertools
import pickle

import numpy as np

from tm_jax.data import clips
from tm_jax.data import faces
from tm_jax.data import prepare
from tm_jax.data import readers


@dataclasses.dataclass(frozen=True, kw_only=True)
class RayEngine:
    """An engine for `prepare.prepare`; every machine sees the videos under the same path.

    Attributes:
      make_encoder: Makes the encoder in an actor; picklable, for example a partial of
        `clip_encoder.load`.
      readers: Actors that read files, each on one CPU.
      encoders: Actors that encode.
      gpus: GPUs of an encoder; None: one if the cluster has GPUs.
      address: The cluster, as `ray.init` takes it; None: that of RAY_ADDRESS, or else one that
        is started on this machine. Where Ray runs already it is not looked at.
    """

    make_encoder: Callable[[], prepare.ClipEncoder]
    readers: int = 1
    encoders: int = 1
    gpus: float | None = None
    address: str | None = None

    def __post_init__(self) -> None:
        if min(self.readers, self.encoders) < 1:
            raise ValueError(
                f"readers and encoders must be at least 1, got {self.readers} and {self.encoders}."
            )

    def __call__(
        self, jobs: list[prepare.Job], config: clips.Config,
        detector: Callable[[], faces.FaceDetector], batch: int,
    ) -> Iterator[Iterator[prepare.Item]]:
        """Reads and encodes files; see `prepare.Engine`.

        Raises:
          ValueError: Ray is not installed, or no cluster is reached.
        """
        if not jobs:
            return
        ray = _ray(self.address)
        gpus = self.gpus
        if gpus is None:
            gpus = 1.0 if ray.cluster_resources().get("GPU", 0) else 0.0
        # A block a file: Ray takes the files one by one, and memory holds few of them.
        rows = [{"file": i, "item": pickle.dumps(job)} for i, job in enumerate(jobs)]
        made = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
            _Cut, fn_constructor_args=(config, detector, batch), batch_size=1, num_cpus=1,
            compute=ray.data.ActorPoolStrategy(size=self.readers),
        ).map_batches(
            _Encode, fn_constructor_args=(self.make_encoder, config, batch), batch_size=1,
            # No CPU of its own, which readers could have taken all.
            num_cpus=0, num_gpus=gpus, compute=ray.data.ActorPoolStrategy(size=self.encoders),
        )  # fmt: skip
        for _, items in itertools.groupby(made.iter_rows(), key=lambda row: row["file"]):
            yield (pickle.loads(row["item"]) for row in items)


class _Cut:
    """An actor that cuts files."""

    def __init__(self, config, detector, batch):
        self._config, self._batch = config, batch
        self._make = clips.MakeReader(config, detector)

    def __call__(self, rows: dict) -> Iterator[dict]:
        ((number, job),) = zip(rows["file"], map(pickle.loads, rows["item"]))
        # In a process of its own: a decoder that crashes costs its file, not the actor.
        for stream in readers.in_order([job.path], self._make, workers=1):
            for item in prepare.cut(job, stream, self._config, self._batch):
                yield _row(number, item)


class _Encode:
    """An actor that holds the networks."""

    def __init__(self, make_encoder, config, batch):
        self._encoder, self._config, self._batch = make_encoder(), config, batch

    def __call__(self, rows: dict) -> dict:
        ((number, item),) = zip(rows["file"], map(pickle.loads, rows["item"]))
        return _row(number, prepare.encode(self._encoder, self._config, self._batch, item))


def _row(number, item) -> dict:
    """A row of Ray Data."""
    packed = np.empty(1, object)
    packed[0] = pickle.dumps(item)
    return {"file": np.array([number]), "item": packed}


def _ray(address: str | None):
    """Ray, connected, with results in order."""
    try:
        import ray
        import ray.data
    except ModuleNotFoundError as error:
        raise ValueError(
            f"a cluster needs the package {error.name}: pip install 'tm_jax[ray]'."
        ) from error
    if not ray.is_initialized():
        try:
            ray.init(address=address)
        except ConnectionError as error:
            raise ValueError(
                f"no Ray cluster at {address or 'RAY_ADDRESS'}: {error} Start one with `ray start "
                "--head`, or leave the address out for this machine alone."
            ) from error
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False  # `prepare` counts files itself.
    return ray
