import pytest

import helios
from helios.functional import replay
from tests.zoo import Line, regression


def setting(**plan):
    model = Line("line")
    made = helios.Plan(total_steps=2, **plan)
    return helios.make_step(model, made), made, helios.init_state(model, 0)


def epoch(number, start):
    return regression(3, seed=number)[start:]


def test_a_replay_yields_the_state_after_each_update():
    states = list(replay(*setting(batches_per_epoch=3), epoch))
    assert [s.current_iteration for s in states] == [1, 2, 3, 4, 5, 6]
    assert [s.dataset_iter for s in states] == [1, 2, 0, 1, 2, 0]


def test_a_replay_goes_on_from_any_of_its_states():
    step, plan, state = setting(batches_per_epoch=3, accumulation_steps=2)
    states = list(replay(step, plan, state, epoch))
    for position, start in enumerate(states):
        assert list(replay(step, plan, start, epoch)) == states[position + 1 :]
    assert list(replay(step, plan, state, epoch, updates=2)) == states[:2]


def test_a_replay_asks_for_the_outcome_of_validations():
    step, plan, state = setting(batches_per_epoch=3, valid_frequency=1, early_stop_cycles=1)
    seen = []

    def validate(now):
        seen.append(now.dict())
        return False, 0.5

    states = list(replay(step, plan, state, epoch, validate=validate))
    assert len(states) == 3
    assert seen[0]["validation_cycles"] == 0
    assert seen[0]["dataset_iter"] == 0
    assert states[-1].early_stop_count == 1
    assert states[-1].carry.best == 0.5


def test_a_replay_without_the_size_of_an_epoch_is_refused():
    with pytest.raises(ValueError, match="batches_per_epoch=None"):
        replay(*setting(), epoch)


def test_a_replay_of_a_plan_that_validates_needs_the_outcomes():
    with pytest.raises(ValueError, match=r"valid_frequency=1.*\(improved, best\)"):
        replay(*setting(batches_per_epoch=3, valid_frequency=1), epoch)
