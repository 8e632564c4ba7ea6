"""Metrics: merging is addition, and the mean is that of all samples."""

from __future__ import annotations

import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from helios.functional.metrics import Mean, as_mean, compute, merge

NAMES = st.sampled_from(["loss", "accuracy", "f1"])
MEANS = st.builds(Mean, st.integers(-1000, 1000).map(float), st.integers(0, 100))
METRICS = st.dictionaries(NAMES, MEANS, max_size=3)


def plain(metrics):
    return {name: (mean.total, mean.weight) for name, mean in metrics.items()}


@given(METRICS, METRICS, METRICS)
def test_merging_is_associative_and_commutative_with_an_identity(a, b, c):
    assert plain(merge(merge(a, b), c)) == plain(merge(a, merge(b, c)))
    assert plain(merge(a, b)) == plain(merge(b, a))
    assert plain(merge(a, {})) == plain(a)


@given(st.lists(st.lists(st.floats(-100, 100), min_size=1, max_size=5), min_size=1, max_size=5))
def test_batch_means_merge_into_the_mean_of_all_samples(batches):
    total = {}
    for batch in batches:
        mean = torch.tensor(batch, dtype=torch.float64).mean()
        total = merge(total, {"loss": as_mean("loss", mean, len(batch))})
    samples = [value for batch in batches for value in batch]
    assert math.isclose(
        compute(total)["loss"], math.fsum(samples) / len(samples), rel_tol=1e-12, abs_tol=1e-12
    )


@given(st.lists(st.floats(-100, 100), min_size=1, max_size=9))
def test_one_value_per_sample_is_counted_sample_by_sample(values):
    mean = as_mean("f1", torch.tensor(values, dtype=torch.float64), 1)
    assert mean.weight == len(values)
    assert math.isclose(mean.compute(), math.fsum(values) / len(values), abs_tol=1e-12)
