"""The pure core: values, and functions from values to values."""

from helios.functional.loss import Loss as Loss
from helios.functional.loss import Objective as Objective
from helios.functional.metrics import Mean as Mean
from helios.functional.precision import LossScale as LossScale
from helios.functional.precision import Policy as Policy
from helios.functional.replay import Difference as Difference
from helios.functional.replay import first_difference_of as first_difference_of
from helios.functional.replay import replay as replay
from helios.functional.replay import settled as settled
from helios.functional.replay import verify as verify
from helios.functional.rng import fold as fold
from helios.functional.rng import train_key as train_key
from helios.functional.schedule import Plan as Plan
from helios.functional.schedule import schedule as schedule
from helios.functional.serial import from_bytes as from_bytes
from helios.functional.serial import to_bytes as to_bytes
from helios.functional.state import Accumulator as Accumulator
from helios.functional.state import Carry as Carry
from helios.functional.state import TrainingState as TrainingState
from helios.functional.state import TrainingUnit as TrainingUnit
from helios.functional.step import Step as Step
from helios.functional.step import make_step as make_step
from helios.functional.trainable import init_state as init_state
from helios.functional.transformation import Transformation as Transformation
from helios.functional.tree import digest as digest
from helios.functional.tree import first_difference as first_difference
