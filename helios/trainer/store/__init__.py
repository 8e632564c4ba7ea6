"""Checkpoints: their names, their content, and how they get onto the disk."""

from helios.trainer.store.content import read_checkpoint as read_checkpoint
from helios.trainer.store.content import restore_state as restore_state
from helios.trainer.store.content import state_content as state_content
from helios.trainer.store.content import stored_state as stored_state
from helios.trainer.store.files import write_atomically as write_atomically
from helios.trainer.store.names import checkpoint_name as checkpoint_name
from helios.trainer.store.names import find_last_checkpoint as find_last_checkpoint
