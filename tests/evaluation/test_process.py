"""Random generators are seen to move, seeded, and put back; Ctrl-C waits."""

import os
import random
import signal

import numpy as np
import pytest
import torch

from bncheck.evaluation.process import (
    deterministic_mode,
    generator_numbers,
    noise_kept,
    random_state,
    seed_everything,
    set_deterministic_mode,
    set_random_state,
    uninterrupted,
)

DRAWS = {
    "torch": lambda: torch.rand(1).item(),
    "random": random.random,
    "numpy": np.random.rand,
    "gauss": np.random.randn,
}


@pytest.mark.parametrize("name", DRAWS)
def test_one_draw_is_seen_and_comes_again(name: str) -> None:
    seed_everything(0)
    before, state = generator_numbers(), random_state()
    drawn = DRAWS[name]()
    assert generator_numbers() != before
    set_random_state(state)
    assert generator_numbers() == before
    assert DRAWS[name]() == drawn
    seed_everything(0)
    assert DRAWS[name]() == drawn


def test_noise_is_as_if_nobody_had_drawn() -> None:
    before = torch.get_rng_state()
    with noise_kept():
        torch.rand(3)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("mode", [(False, False), (True, False), (True, True)])
def test_the_deterministic_mode_is_set_as_it_was_read(mode: tuple[bool, bool]) -> None:
    before = deterministic_mode()
    try:
        set_deterministic_mode(mode)
        assert deterministic_mode() == mode
    finally:
        set_deterministic_mode(before)


def test_ctrl_c_arrives_at_the_end_of_the_block() -> None:
    reached = False
    with pytest.raises(KeyboardInterrupt), uninterrupted():  # noqa: PT012
        os.kill(os.getpid(), signal.SIGINT)
        reached = True
    assert reached
