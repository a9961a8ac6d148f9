"""What a config asks for, put together."""

import itertools

from ssl3d.data import pipeline
from ssl3d.training import problem


def test_as_many_validation_cases_are_scored_as_asked_for(tiny, pictures):
    def scored(**overrides):
        given, _ = problem.open_problem(tiny("rpl2d", pictures.path, **overrides))
        return problem.scored_cases(given)

    assert scored() == pictures.split("val")
    first = sorted(pictures.split("val"), key=lambda case: case.order)[:2]
    assert scored(validation__cases=2) == tuple(sorted(first, key=lambda case: case.id))
    # Every labelled case chooses the best model of a downstream task.
    given, _ = problem.open_problem(tiny("classify2d", pictures.path))
    assert problem.scored_cases(given) == given.validation_cases


def test_batches_read_ahead_are_bounded_in_bytes(tiny, pictures, monkeypatch):
    """With a bound below a batch one is read at a time, and nothing else changes."""
    config = tiny("rpl2d", pictures.path, data__threads=4)
    given, _ = problem.open_problem(config)

    def first(count):
        return [batch["case"].tolist() for batch in itertools.islice(batches(), count)]

    def batches():
        return problem.train_batches(given, first_batch=0)

    many = first(5)
    monkeypatch.setattr(pipeline, "BUFFER", 1)
    assert first(5) == many
