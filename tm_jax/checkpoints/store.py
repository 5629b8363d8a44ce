"""Orbax checkpoints of a training state together with the position of its input."""

import os
from typing import Any

from absl import logging
import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as managers

from tm_jax.core import trees
from tm_jax.parallel import hosts

_VALUE = "value"  # Of a checkpoint, where the best one is kept.


def _value(metrics: dict) -> float:
    return metrics[_VALUE]


def _policy(keep: int, keep_best: bool) -> managers.PreservationPolicy:
    newest = managers.LatestN(n=keep)
    if not keep_best:
        return newest
    best = managers.BestN(
        get_metric_fn=_value, n=1, keep_checkpoints_without_metrics=False
    )
    return managers.AnyPreservationPolicy([newest, best])


class Store:
    """Atomic, asynchronous checkpoints in one folder.

    A checkpoint appears under its step number only when it is complete, so a killed process
    leaves the previous one intact. One that cannot be read is passed over with a warning.
    """

    def __init__(self, folder: str, keep: int = 2, keep_best: bool = False):
        """Opens or creates a folder.

        Args:
          folder: Where.
          keep: Checkpoints that stay, the newest ones.
          keep_best: Whether the one of the highest value stays too.
        """
        self._folder = os.path.abspath(folder)
        self._manager = ocp.CheckpointManager(
            self._folder,
            options=ocp.CheckpointManagerOptions(
                create=True, preservation_policy=_policy(keep, keep_best),
                # Without it values are not written.
                best_fn=_value if keep_best else None,
            ),
            item_handlers={
                "state": ocp.StandardCheckpointHandler(), "position": ocp.JsonCheckpointHandler()
            },
        )
        self._saved = self._manager.latest_step()

    @property
    def latest(self) -> int | None:
        """Step of the newest complete checkpoint."""
        return self._manager.latest_step()

    @property
    def best(self) -> int | None:
        """Step of the checkpoint of the highest value, if any has one."""
        found = {
            step: self._manager.metrics(step) for step in self._manager.all_steps()
        }
        values = {step: m[_VALUE] for step, m in found.items() if m and _VALUE in m}
        return max(values, key=lambda step: (values[step], step)) if values else None

    def save(self, step: int, state: Any, position: dict, value: float | None = None) -> None:
        """Starts to write `state` and the input's JSON `position`; returns at once.

        Args:
          step: Number of the checkpoint.
          state: Tree of arrays.
          position: Plain JSON.
          value: How good the state is, where `keep_best` asks.

        Raises:
          OSError: This or the checkpoint before it could not be written. The last good one is
            still there.
        """
        self.check()
        if step == self._saved:
            return
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(state), position=ocp.args.JsonSave(position)
        )
        metrics = None if value is None else {_VALUE: value}
        self._guard(lambda: self._manager.save(step, args=args, metrics=metrics), step)
        self._saved = step

    def check(self) -> None:
        """Raises OSError if the checkpoint that is being written has failed already."""
        self._guard(self._manager.check_for_errors, self._saved)

    def wait(self) -> None:
        """Waits until everything is on disk; raises OSError if that fails."""
        self._guard(self._manager.wait_until_finished, self._saved)

    def _guard(self, work, step: int | None) -> None:
        """Runs `work`; failures of the writer, whatever their kind, become one OSError."""
        try:
            work()
        except Exception as error:  # The writer's thread hands over whatever it met.
            good = [s for s in self._on_disk() if s != step]
            kept = f"the last good one is step {max(good)}" if good else "there is none before"
            reason = str(error).strip().splitlines() or [type(error).__name__]
            raise OSError(
                f"the checkpoint of step {step} could not be written to {self._folder} "
                f"({reason[0][:200]}); {kept}. Make room or mend the folder; the same command "
                "goes on from there."
            ) from error

    def _on_disk(self) -> list[int]:
        return [int(name) for name in os.listdir(self._folder) if name.isdecimal()]

    def restore(
        self, state: Any, placement: Any, step: int | None = None
    ) -> tuple[Any, dict]:
        """Reads the newest checkpoint that is whole, every shard directly to its device.

        A checkpoint that cannot be read is set aside under the name `unreadable-STEP`.

        Args:
          state: Tree of arrays or of `jax.ShapeDtypeStruct`.
          placement: Shardings in the same structure; those of the checkpoint may differ.
          step: The one to read; by default the newest.

        Returns:
          The state and the input's position.

        Raises:
          ValueError: There is none, none can be read, or it holds another state.
        """
        if self.latest is None:
            raise ValueError("there is no checkpoint to resume from.")
        target = jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, placement
        )
        damaged = []
        steps = sorted(self._manager.all_steps(), reverse=True) if step is None else [step]
        for step in steps:
            try:
                self._compare(step, target)
                found = self._manager.restore(step, args=ocp.args.Composite(
                    state=ocp.args.StandardRestore(target), position=ocp.args.JsonRestore()
                ))
            except _Another as error:
                raise ValueError(str(error)) from error
            except Exception as error:  # noqa: BLE001  Every layer below has its own errors.
                damaged.append(step)
                logging.warning(
                    "The checkpoint of step %d in %s cannot be read and is passed over: %s",
                    step, self._folder, (str(error).splitlines() or [type(error).__name__])[0],
                )
                continue
            self._set_aside(damaged)
            return found["state"], found["position"]
        raise ValueError(
            f"none of the checkpoints in {self._folder} can be read (steps {damaged}); move the "
            "folder away to start again."
        )

    def _compare(self, step: int, target: Any) -> None:
        """Raises `_Another` if a checkpoint holds a state of other names or sizes."""
        saved = trees.flatten(self._manager.item_metadata(step)["state"].tree)
        wanted = trees.flatten(target)
        for name in sorted(set(saved) ^ set(wanted)):
            where = "the checkpoint" if name in saved else "the state"
            raise _Another(f"the checkpoint of step {step} is of another run: only {where} has "
                           f"{name}. Use the settings of that run, or another folder.")
        for name, leaf in wanted.items():
            if tuple(saved[name].shape) != tuple(leaf.shape):
                raise _Another(
                    f"the checkpoint of step {step} is of another run: the shape of {name} is "
                    f"{tuple(saved[name].shape)} there and {tuple(leaf.shape)} here. Use the "
                    "settings of that run, or another folder."
                )

    def _set_aside(self, steps: list[int]) -> None:
        """Renames unreadable checkpoints, so that their steps can be written again."""
        for step in steps if hosts.is_first() else ():
            place = os.path.join(self._folder, f"unreadable-{step}")
            number = sum(n.startswith(f"unreadable-{step}") for n in os.listdir(self._folder))
            os.rename(
                os.path.join(self._folder, str(step)), f"{place}.{number}" if number else place
            )
        if steps:
            hosts.wait("checkpoints set aside")
            self._manager.reload()
            self._saved = self._manager.latest_step()

    def close(self) -> None:
        """Waits until everything is on disk; raises OSError if that fails."""
        try:
            self.wait()
        finally:
            self._manager.close()


class _Another(Exception):
    """A checkpoint of another state than the one that is asked for."""
