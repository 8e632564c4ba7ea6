"""Models: what to train."""

from helios.model.imperative import ImperativeModel as ImperativeModel
from helios.model.model import Model as Model
from helios.model.monitor import Monitor as Monitor
from helios.model.pretrained import Loaded as Loaded
from helios.model.pretrained import load_pretrained as load_pretrained
from helios.model.registry import MODEL_REGISTRY as MODEL_REGISTRY
from helios.model.registry import create_model as create_model
