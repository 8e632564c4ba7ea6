"""The models that the laws of helios are tried on, and those of its examples, keep the laws."""

from __future__ import annotations

import argparse

import pytest

import helios
from helios.examples import char_lm, digits
from helios.testing import check_laws
from property_tests import cases
from tests.zoo import batches_for


class Given(helios.DataModule):
    """Batches that exist already."""

    def __init__(self, batches):
        self.batches = batches

    def setup(self):
        pass

    def train_dataloader(self):
        return self.batches


@pytest.mark.parametrize("kind", cases.MODELS)
def test_the_models_of_the_laws_keep_them(kind):
    report = check_laws(cases.MAKE[kind], Given(batches_for(cases.MAKE[kind](), 5)))
    assert [result.law for result in report.results if not result.holds] == ["workers"]


def test_the_classifier_of_digits_keeps_the_laws():
    report = check_laws(lambda: digits.Digits("digits"), digits.load_data())
    assert all(result.holds for result in report.results), str(report)


def test_the_language_model_keeps_the_laws():
    args = argparse.Namespace(dim=16, layers=1, context=16, updates=10)
    report = check_laws(
        lambda: char_lm.CharLM("chars", args), char_lm.load_data(16, 4000, 4), batches=3
    )
    assert all(result.holds for result in report.results), str(report)
