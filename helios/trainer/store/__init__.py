"""Checkpoints: their names, their content, and how they get onto the disk and off it."""

from helios.trainer.store.content import restore_state as restore_state
from helios.trainer.store.content import state_content as state_content
from helios.trainer.store.content import stored_state as stored_state
from helios.trainer.store.names import checkpoint_name as checkpoint_name
from helios.trainer.store.names import find_last_checkpoint as find_last_checkpoint
from helios.trainer.store.pins import pin_checkpoint as pin_checkpoint
from helios.trainer.store.pins import unpin_checkpoint as unpin_checkpoint
from helios.trainer.store.reading import read_checkpoint as read_checkpoint
from helios.trainer.store.retention import Retention as Retention
from helios.trainer.store.store import Store as Store
