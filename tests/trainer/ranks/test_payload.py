"""What is sent to ranks: copies, and a clear word on what cannot be sent."""

from __future__ import annotations

import pickle
import threading

import pytest
import torch

from helios.trainer.ranks.payload import pack


class Owner:
    def __init__(self, **attributes):
        self.__dict__.update(attributes)

    def __repr__(self):
        return "an owner"


class Slotted:
    __slots__ = ("lock",)

    def __init__(self, lock):
        self.lock = lock


class Unspeakable:
    def __reduce__(self):
        raise OSError("no reduction")

    def __repr__(self):
        raise OSError("no repr")


def work():
    """Nothing that runs."""


def network():
    module = torch.nn.Sequential(torch.nn.Linear(2, 2))
    module[0].act = lambda x: x
    return module


def test_a_function_and_its_arguments_are_pickled():
    assert pickle.loads(pack(work, (1, "x"))) == (work, (1, "x"))


def test_tensors_are_copied_and_not_shared():
    tensor = torch.zeros(2)
    _, (copy,) = pickle.loads(pack(work, (tensor,)))
    copy += 1
    assert tensor.tolist() == [0.0, 0.0]
    assert not tensor.is_shared()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((1, Owner(loss=lambda x: x)), r"^Owner\.loss: received <function <lambda>"),
        (
            (Owner(a=Owner(b=[0, {"k": threading.Lock()}])),),
            r"^Owner\.a\.b\[1\]\['k'\]: received <",
        ),
        (((0, threading.Lock()),), r"^tuple\[1\]: received <unlocked"),
        (({threading.Lock()},), r"^set: received <unlocked"),
        ((Slotted(threading.Lock()),), r"^Slotted\.lock: received <unlocked"),
        ((network(),), r"^Sequential\.0\.act: received <function network.<locals>"),
        ((Owner(x=Unspeakable()),), r"^Owner\.x: received an object of Unspeakable.*no reduction"),
        ((x for x in ()), r"^generator: received <generator"),
    ],
)
def test_what_cannot_be_pickled_is_named_by_its_path(args, message):
    args = args if isinstance(args, tuple) else (args,)
    with pytest.raises(TypeError, match=message):
        pack(work, args)


def test_a_cycle_is_followed_once():
    owner = Owner(lock=threading.Lock())
    owner.itself = owner
    with pytest.raises(TypeError, match=r"^Owner\.lock: "):
        pack(work, (owner,))


def test_a_function_within_a_function_is_named():
    with pytest.raises(TypeError, match=r"^the function: received <function .*<lambda>.*torchrun"):
        pack(lambda: 0, ())
