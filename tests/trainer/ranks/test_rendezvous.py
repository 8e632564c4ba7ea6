from __future__ import annotations

import os

import pytest
import torch.distributed as dist

from helios.errors import RankError
from helios.trainer.ranks.rendezvous import Rendezvous
from tests.trainer.ranks import world

GIVEN = {
    "RANK": "3",
    "LOCAL_RANK": "1",
    "WORLD_SIZE": "4",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "29500",
    "TORCHELASTIC_RUN_ID": "job",
    "TORCHELASTIC_RESTART_COUNT": "2",
    "TORCHELASTIC_USE_AGENT_STORE": "True",
}


def prefixes_are_new():
    first, second = (Rendezvous.from_environment().store(5.0) for _ in range(2))
    first.set("key", "old")
    return second.check(["key"])


def meet_without_a_store():
    Rendezvous.from_environment().store(0.5)


def host_where_something_listens():
    listening = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    if os.fork() == 0:
        try:
            Rendezvous(0, 0, 1, "127.0.0.1", listening.port).store(2.0)
        except RankError as error:
            os.write(2, f"{error.rank}: {error}".encode())
        os._exit(0)
    os.wait()


def test_it_is_read_from_what_torchrun_gives():
    assert Rendezvous.from_environment(GIVEN) == Rendezvous(
        rank=3,
        local_rank=1,
        world_size=4,
        host="127.0.0.1",
        port=29500,
        is_hosted=True,
        name="job/2",
    )


def test_without_an_agent_rank_0_hosts_the_store():
    met = Rendezvous.from_environment(GIVEN | {"TORCHELASTIC_USE_AGENT_STORE": "False"})
    assert not met.is_hosted
    assert met.hosting_rank == 0


@pytest.mark.parametrize("name", ["RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"])
def test_a_variable_that_is_missing_is_named(name):
    given = {key: value for key, value in GIVEN.items() if key != name}
    with pytest.raises(ValueError, match=rf"^{name}: received None .*start them with torchrun"):
        Rendezvous.from_environment(given)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("RANK", "x", "RANK: received 'x'"),
        ("RANK", "-1", "RANK: received '-1'"),
        ("RANK", "4", "rank: received 4 with a world size of 4"),
        ("WORLD_SIZE", "0", "rank: received 3 with a world size of 0"),
        ("WORLD_SIZE", "2.0", "WORLD_SIZE: received '2.0'"),
        ("MASTER_PORT", "0", "port: received 0"),
        ("MASTER_PORT", "65536", "port: received 65536"),
        ("MASTER_ADDR", "", "MASTER_ADDR: received ''"),
    ],
)
def test_a_value_that_makes_no_sense_is_named(name, value, message):
    with pytest.raises(ValueError, match=f"^{message}.*; expected"):
        Rendezvous.from_environment(GIVEN | {name: value})


def test_every_join_of_a_process_has_keys_of_its_own():
    assert world.values(world.run(prefixes_are_new, 1)) == [False]


@pytest.mark.parametrize(
    ("hosted", "host"), [("True", "what started the ranks"), ("False", "rank 0")]
)
def test_a_store_that_is_not_reached_is_an_error(hosted, host):
    environment = {"RANK": "1", "WORLD_SIZE": "2", "TORCHELASTIC_USE_AGENT_STORE": hosted}
    (outcome,) = world.run(meet_without_a_store, 1, agent=False, environment=environment)
    assert outcome.status == 1
    assert "RankError: rank 1 waited 0.5 s for the store at 127.0.0.1:" in outcome.output
    assert f"which {host} hosts" in outcome.output


def test_a_port_that_is_taken_is_an_error():
    (outcome,) = world.run(host_where_something_listens, 1)
    assert "0: rank 0 cannot host the store at 127.0.0.1:" in outcome.output
    assert "MASTER_PORT" in outcome.output
