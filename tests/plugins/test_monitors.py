import pytest

import helios
from helios.plugins import MemoryMonitor, Plugin, ThroughputMonitor
from helios.plugins.monitors import process_memory
from tests import zoo
from tests.trainer.runs import Batches, run


class Recorder(Plugin):
    """Keeps what another plugin has measured at each report."""

    def __init__(self, plugin):
        super().__init__("recorder")
        self.plugin, self.seen, self.fetched = plugin, [], 0

    def on_training_batch_fetched(self, batch, seconds):
        self.fetched += 1

    def on_training_report(self, state):
        self.seen.append(dict(self.plugin.last))


@pytest.mark.parametrize("monitor", [ThroughputMonitor, MemoryMonitor])
def test_a_monitor_changes_no_bit(monitor):
    watched = run(print_frequency=2, plugins=[monitor()]).state
    assert helios.digest(watched) == helios.digest(run(print_frequency=2).state)


def test_each_window_is_reported():
    recorder = Recorder(ThroughputMonitor())
    run(print_frequency=2, accumulation_steps=2, plugins=[recorder.plugin, recorder])
    assert len(recorder.seen) == 3
    assert recorder.fetched == 12
    for numbers in recorder.seen:
        assert 0 <= numbers["throughput/waiting_for_data"] <= 1
        batches = numbers["throughput/micro_batches_per_second"]
        assert numbers["throughput/samples_per_second"] == pytest.approx(4 * batches)
        assert numbers["throughput/updates_per_second"] == pytest.approx(batches / 2)


def test_without_a_print_frequency_it_is_reported_with_the_validations():
    recorder = Recorder(MemoryMonitor())
    data = Batches(zoo.regression(6), zoo.regression(2))
    run(data=data, valid_frequency=3, plugins=[recorder.plugin, recorder])
    assert len(recorder.seen) == 3


def test_the_peak_of_memory_is_not_below_what_is_in_use():
    used = process_memory()
    assert used["process_peak"] >= used["process"] > 2**20


def test_the_numbers_go_to_tensorboard(tmp_path):
    run(run_path=tmp_path, enable_tensorboard=True, print_frequency=2, plugins=[MemoryMonitor()])
    [file] = tmp_path.rglob("events*")
    assert b"memory/process_peak" in file.read_bytes()
