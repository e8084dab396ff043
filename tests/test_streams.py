"""Random streams depend on their name and on nothing else."""

from __future__ import annotations

from itertools import combinations

import torch

from wmse.streams import stream, stream_seed


def numbers(generator: torch.Generator) -> list[float]:
    return torch.rand(4, generator=generator).tolist()


def test_the_same_name_gives_the_same_numbers() -> None:
    assert numbers(stream(3, "views", 17, 1)) == numbers(stream(3, "views", 17, 1))


def test_seed_purpose_and_every_index_matter() -> None:
    names = [
        (0, "views", 1, 0),
        (1, "views", 1, 0),
        (0, "order", 1, 0),
        (0, "views", 0, 1),
        (0, "views", 1, 1),
        (0, "views", 10),
        (0, "views", 1),
        (0, "views"),
    ]
    drawn = [numbers(stream(*name)) for name in names]
    assert all(a != b for a, b in combinations(drawn, 2))


def test_neighbouring_names_do_not_collide() -> None:
    seeds = {stream_seed(seed, "views", step, view) for seed in range(5) for step in range(300) for view in range(4)}
    assert len(seeds) == 5 * 300 * 4


def test_seeds_fit_a_torch_generator() -> None:
    assert all(0 <= stream_seed(seed, "x") < 2**63 for seed in range(200))


def test_a_stream_is_the_same_in_every_version() -> None:
    """A change here would silently change every run that has been resumed or published."""
    assert stream_seed(0, "views", 1, 2) == 8074263173592381707


def test_the_global_state_neither_matters_nor_changes() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = numbers(stream(0, "views", 5))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    torch.rand(100)
    assert numbers(stream(0, "views", 5)) == first
