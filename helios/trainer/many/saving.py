"""Checkpoints of all members: for each an ordinary one, in a folder of its own."""

from __future__ import annotations

from collections.abc import Sequence

from helios.functional.stacked import member_state
from helios.functional.state import TrainingState
from helios.trainer.many.model import Many
from helios.trainer.saving import Saver
from helios.trainer.store import Store
from helios.trainer.store.manifest import Manifest


class MemberStore(Store):
    """The checkpoints of one member, of which none is removed before all members have the next.

    A run that is killed between two members' saves goes on from the last place that all have.
    """

    _newest_manifest: Manifest | None = None

    def _collect(self, newest: Manifest) -> None:
        self._newest_manifest = newest

    def collect(self) -> None:
        """Remove what the retention does not keep."""
        newest, self._newest_manifest = self._newest_manifest, None
        if newest is not None:
            super()._collect(newest)


class ManySaver:
    """Writes a checkpoint for each member; see `helios.trainer.saving.Saves`.

    Args:
        many: the members.
        stores: where the checkpoints of each go.
        savers: what writes them.
        in_background: whether a save is done only once it is waited for.
    """

    def __init__(
        self,
        many: Many,
        stores: Sequence[MemberStore],
        savers: Sequence[Saver],
        *,
        in_background: bool,
    ) -> None:
        self._many = many
        self._stores = stores
        self._savers = savers
        self._in_background = in_background
        self._held: TrainingState | None = None
        self._own: list[TrainingState] = []

    def __call__(self, state: TrainingState) -> None:
        """Write the checkpoints of a state, or begin to.

        Raises:
            CheckpointError: if one cannot be written, or one of those before it could not be.
        """
        self._collect()
        self._held, self._own = state, []
        for k, saver in enumerate(self._savers):
            own = member_state(state, k)
            self._many.hold(k, own)
            saver(own)
            self._own.append(own)
        if not self._in_background:
            self._collect()

    def holds(self, state: TrainingState) -> bool:
        """Tell whether a state is on the disk, of every member; waits for the saves under way."""
        return self._held is state and self._are_whole()

    def hold(self, state: TrainingState) -> None:
        """Note that a state is on the disk already: the run went on from it."""
        self._held = state
        self._own = [member_state(state, k) for k in range(len(self._savers))]
        for saver, own in zip(self._savers, self._own, strict=True):
            saver.hold(own)

    def finish(self) -> None:
        """Wait until everything is on the disk.

        Raises:
            CheckpointError: if the last save of a member failed.
        """
        for saver in self._savers:
            saver.finish()
        self._collect()

    def close(self) -> None:
        """Wait for the saves under way, when something else is raised already."""
        for saver in self._savers:
            saver.close()

    def _are_whole(self) -> bool:
        """Tell whether the last save of every member is on the disk."""
        saved = len(self._own) == len(self._savers)
        return saved and all(map(_holds, self._savers, self._own))

    def _collect(self) -> None:
        """Remove old checkpoints, once all members have the new one."""
        if self._own and self._are_whole():
            for store in self._stores:
                store.collect()


def _holds(saver: Saver, state: TrainingState) -> bool:
    return saver.holds(state)
