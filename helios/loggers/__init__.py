"""Where the numbers of a run go: files of rows, Weights & Biases, and logs of the user's own."""

from helios.loggers.csv_log import CSVLog as CSVLog
from helios.loggers.json_log import JSONLog as JSONLog
from helios.loggers.log import Log as Log
from helios.loggers.run_log import Run as Run
from helios.loggers.run_log import RunLog as RunLog
from helios.loggers.wandb_log import WandbLog as WandbLog
