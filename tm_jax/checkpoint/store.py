"""Orbax checkpoints of a training state together with the position of its input."""

import os

import jax
import orbax.checkpoint as ocp


class Store:
    """Atomic, asynchronous checkpoints in one folder.

    A checkpoint appears under its step number only when it is complete, so a killed process
    leaves the previous one intact.
    """

    def __init__(self, folder: str, keep: int = 2):
        self._manager = ocp.CheckpointManager(
            os.path.abspath(folder),
            options=ocp.CheckpointManagerOptions(max_to_keep=keep, create=True),
        )

    @property
    def latest(self) -> int | None:
        """Step of the newest complete checkpoint."""
        return self._manager.latest_step()

    def save(self, step: int, state, position: dict):
        """Starts to write `state` and the input's JSON `position`; returns at once."""
        if step == self.latest:
            return
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state), position=ocp.args.JsonSave(position)
            ),
        )

    def restore(self, state, placement):
        """Reads the newest checkpoint into the structure and sharding of a fresh state.

        Returns:
          The state and the input's position.

        Raises:
          ValueError: There is none, or it was made with other sizes.
        """
        if self.latest is None:
            raise ValueError("there is no checkpoint to resume from.")
        target = jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, placement
        )
        restored = self._manager.restore(
            self.latest,
            args=ocp.args.Composite(
                state=ocp.args.StandardRestore(target), position=ocp.args.JsonRestore()
            ),
        )
        return restored["state"], restored["position"]

    def close(self):
        """Waits until everything is on disk."""
        self._manager.wait_until_finished()
        self._manager.close()
