import pytest

from helios.core.lookup import LookupRegistry
from helios.errors import RegistryError
from helios.model import LOSS_REGISTRY, METRIC_REGISTRY, create_loss, create_metric, create_network
from helios.optim import (
    NAMED,
    OPTIMIZER_REGISTRY,
    RATE_REGISTRY,
    create_optimizer,
    create_rate,
    rates,
)


def test_the_library_is_looked_up_when_it_is_needed_and_once():
    asked = []
    registry = LookupRegistry("thing", lambda: asked.append(1) or {"a": len, "b": abs})
    assert asked == []
    assert registry.get("a") is len
    assert "b" in registry
    assert list(registry.keys()) == ["a", "b"]
    assert len(registry) == 2
    assert asked == [1]


def test_what_is_registered_goes_first():
    registry = LookupRegistry("thing", lambda: {"mine": len, "b": abs})

    @registry.register
    def mine():
        return 3

    assert registry.create("mine") == 3
    assert dict(iter(registry))["mine"] is mine


def test_an_unknown_name_lists_both_and_advises():
    registry = LookupRegistry("thing", lambda: {"length": len}, lambda: "Install more.")
    with pytest.raises(
        RegistryError, match=r"has 'length'\. Did you mean 'length'\? Install more\."
    ):
        registry.get("lenght")


def test_all_losses_of_torch_are_there():
    import torch

    of_torch = {
        n for n in dir(torch.nn) if n.endswith("Loss") and n != "AdaptiveLogSoftmaxWithLoss"
    }
    assert of_torch <= set(LOSS_REGISTRY.keys())
    assert create_loss("HuberLoss", delta=2.0).delta == 2.0


def test_all_metrics_of_torchmetrics_are_there():
    from torchmetrics.classification import BinaryAUROC

    assert isinstance(create_metric("BinaryAUROC"), BinaryAUROC)
    assert {"MeanSquaredError", "Accuracy", "MulticlassF1Score"} <= set(METRIC_REGISTRY.keys())


def test_all_optimizers_and_rates_are_there():
    import msgspec

    assert set(OPTIMIZER_REGISTRY.keys()) == set(NAMED)
    here = {
        name
        for name, value in vars(rates).items()
        if isinstance(value, type) and issubclass(value, msgspec.Struct)
    }
    assert set(RATE_REGISTRY.keys()) == here | {"warmup_cosine"}


@pytest.mark.parametrize(
    ("create", "name", "says"),
    [
        (create_network, "Resnet", "the network registry has no 'Resnet'"),
        (create_loss, "CrossEntropy", "Did you mean 'CrossEntropyLoss'"),
        (create_metric, "BinaryAURC", "Did you mean 'BinaryAUROC'"),
        (create_optimizer, "adamw", "Did you mean 'AdamW'"),
        (create_rate, "cosin", "Did you mean 'cosine'"),
    ],
)
def test_an_unknown_name_is_an_error_with_the_valid_ones(create, name, says):
    with pytest.raises(RegistryError, match=says):
        create(name)


@pytest.mark.parametrize(
    ("create", "name", "options", "says"),
    [
        (create_loss, "HuberLoss", {"dleta": 1}, "loss 'HuberLoss': received the unknown .*delta'"),
        (
            create_optimizer,
            "AdamW",
            {"beta": 1},
            "optimizer 'AdamW': .* 'beta'; .*Did you mean 'bet",
        ),
        (create_rate, "cosine", {"stat": 1}, "rate 'cosine': received the unknown argument 'stat'"),
        (
            create_rate,
            "constant",
            {},
            "rate 'constant': missing a required argument: 'rate'; it ta",
        ),
    ],
)
def test_wrong_arguments_are_errors_with_the_valid_ones(create, name, options, says):
    with pytest.raises(TypeError, match=says):
        create(name, **options)
