"""Models: what to train."""

from helios.model.batch_norm import update_bn as update_bn
from helios.model.freeze import freeze as freeze
from helios.model.freeze import unfreeze as unfreeze
from helios.model.imperative import ImperativeModel as ImperativeModel
from helios.model.losses import LOSS_REGISTRY as LOSS_REGISTRY
from helios.model.losses import create_loss as create_loss
from helios.model.metrics import METRIC_REGISTRY as METRIC_REGISTRY
from helios.model.metrics import create_metric as create_metric
from helios.model.model import Model as Model
from helios.model.monitor import Monitor as Monitor
from helios.model.pretrained import Loaded as Loaded
from helios.model.pretrained import load_pretrained as load_pretrained
from helios.model.recompute import checkpoint_activations as checkpoint_activations
from helios.model.registry import MODEL_REGISTRY as MODEL_REGISTRY
from helios.model.registry import NETWORK_REGISTRY as NETWORK_REGISTRY
from helios.model.registry import create_model as create_model
from helios.model.registry import create_network as create_network
