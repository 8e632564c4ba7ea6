"""Optimizers as pairs of pure functions, with torch's own numerics.

An optimizer is a `Transformation`: ``init(params) -> state`` and ``update(grads, state, params) ->
(params, state)``. Learning rates are functions of the updates completed, in `rates`.
"""

from helios.functional.transformation import Tensors as Tensors
from helios.functional.transformation import Transformation as Transformation
from helios.optim import rates as rates
from helios.optim.average import Average as Average
from helios.optim.average import average as average
from helios.optim.chain import Chain as Chain
from helios.optim.chain import chain as chain
from helios.optim.clip import clip_by_global_norm as clip_by_global_norm
from helios.optim.clip import clip_by_value as clip_by_value
from helios.optim.gradient_transformation import GradientTransformation as GradientTransformation
from helios.optim.groups import Groups as Groups
from helios.optim.groups import groups as groups
from helios.optim.named import ASGD as ASGD
from helios.optim.named import NAMED as NAMED
from helios.optim.named import SGD as SGD
from helios.optim.named import Adadelta as Adadelta
from helios.optim.named import Adafactor as Adafactor
from helios.optim.named import Adagrad as Adagrad
from helios.optim.named import Adam as Adam
from helios.optim.named import Adamax as Adamax
from helios.optim.named import AdamW as AdamW
from helios.optim.named import Muon as Muon
from helios.optim.named import NAdam as NAdam
from helios.optim.named import RAdam as RAdam
from helios.optim.named import RMSprop as RMSprop
from helios.optim.named import Rprop as Rprop
from helios.optim.registry import OPTIMIZER_REGISTRY as OPTIMIZER_REGISTRY
from helios.optim.registry import RATE_REGISTRY as RATE_REGISTRY
from helios.optim.registry import create_optimizer as create_optimizer
from helios.optim.registry import create_rate as create_rate
from helios.optim.torch_optimizer import LearningRate as LearningRate
from helios.optim.torch_optimizer import Rate as Rate
from helios.optim.torch_optimizer import TorchOptimizer as TorchOptimizer
