"""Finding a learning rate and a batch size, on copies: nothing that is given is changed."""

from helios.tuning.batch_size import BatchSizes as BatchSizes
from helios.tuning.batch_size import find_batch_size as find_batch_size
from helios.tuning.learning_rate import LearningRates as LearningRates
from helios.tuning.learning_rate import find_lr as find_lr
