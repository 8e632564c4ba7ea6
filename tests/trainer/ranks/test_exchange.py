from __future__ import annotations

import torch

from helios.functional.tree import first_difference, same_bits
from helios.functional.tree_sum import combine
from helios.trainer.ranks.exchange import TreeExchange
from tests.trainer.ranks import world

SHAPES = [((3, 5), torch.float32), ((), torch.float32), ((7,), torch.float64)]
SHAPES += [((2, 2), torch.bfloat16), ((0,), torch.float32), ((1,), torch.float16)]


def node(rank: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(rank)
    tensors = []
    for shape, dtype in SHAPES:
        exponent = torch.rand(shape, generator=generator) * 8 - 4
        tensors.append((torch.randn(shape, generator=generator) * 10**exponent).to(dtype))
    tensors[0] = tensors[0].t()  # not contiguous
    return tensors


def run_rank(folder: str) -> None:
    rank = world.join()
    exchange = TreeExchange()
    given = node(rank)
    total = exchange(given)
    table = exchange.gather(torch.tensor([rank, -0.0, float("nan")], dtype=torch.float64))
    counted = exchange.collectives, exchange.bytes_sent
    same = all(a is b for a, b in zip(total, given, strict=True))
    torch.save((total, table, counted, same), f"{folder}/{rank}.pt")
    world.leave()


def test_ranks_get_the_total_of_the_tree_and_every_number_of_each(tmp_path):
    world_size = 3
    world.values(world.run(run_rank, world_size, args=(str(tmp_path),)))
    expected = [combine(parts) for parts in zip(*map(node, range(world_size)), strict=True)]
    numbers = torch.tensor([[r, -0.0, float("nan")] for r in range(3)], dtype=torch.float64)
    # Shards of 16 float32 (6 each), 7 float64 (3), 4 bfloat16 (2) and 1 float16 (1), twice.
    sent = 2 * ((6 * 4 + 3 * 8 + 2 * 2 + 1 * 2) * 2) + 3 * 8 * 2
    for rank in range(world_size):
        total, table, counted, same = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert first_difference(total, expected) is None
        assert same_bits(table, numbers)
        assert counted == (9, sent)
        assert same


def test_one_rank_exchanges_nothing():
    exchange = TreeExchange()
    tensors = node(0)
    assert exchange(tensors) is tensors
    numbers = torch.ones(2, dtype=torch.float64)
    assert torch.equal(exchange.gather(numbers), numbers[None])
    assert (exchange.world_size, exchange.collectives, exchange.bytes_sent) == (1, 0, 0)
