import copy
import json
import pickle

import ml_collections
import pytest

from ssl3d import bounds
from ssl3d.bounds import Config, at_least, bounded, one_of
from ssl3d.errors import UserError


def make():
    config = Config()
    config.steps = bounded(10, at_least(1))
    config.part = Config()
    config.part.pool = bounded("mean", one_of("mean", "max"))
    return config


def test_values_are_plain():
    config = make()
    assert type(config.steps) is int
    assert config.part.pool == "mean"
    assert json.loads(config.to_json()) == {"steps": 10, "part": {"pool": "mean"}}
    assert config.to_dict() == {"steps": 10, "part": {"pool": "mean"}}


@pytest.mark.parametrize(
    "duplicate",
    [
        lambda config: config,
        lambda config: config.copy_and_resolve_references(),
        copy.deepcopy,
        lambda config: pickle.loads(pickle.dumps(config)),
    ],
    ids=["itself", "copy", "deepcopy", "pickle"],
)
def test_bounds_outlive_assignment_and_copies(duplicate):
    config = duplicate(make())
    bounds.check(config)
    config.part.pool = "max"
    bounds.check(config)
    config.part.pool = "sum"
    with pytest.raises(UserError, match=r"^config\.part\.pool='sum': must be mean or max$"):
        bounds.check(config)
    config.part.pool = "mean"
    config.update_from_flattened_dict({"steps": 0})
    with pytest.raises(UserError, match=r"^config\.steps=0: must be 1 or more$"):
        bounds.check(config)


def test_a_copy_has_bounds_of_its_own():
    config = make()
    config.copy_and_resolve_references().steps = bounded(0, at_least(0))
    config.steps = 0
    with pytest.raises(UserError, match="1 or more"):
        bounds.check(config)


def test_bounds_go_with_their_key():
    config = make()
    config.part.pool = "sum"
    del config.part
    bounds.check(config)


def test_every_section_has_bounds():
    config = make()
    config.own = ml_collections.ConfigDict({"inner": {"width": 4}})
    config.own.inner.width = bounded(4, at_least(2))
    assert config.own.inner.width == 4
    config.own.inner.width = 1
    with pytest.raises(UserError, match=r"^config\.own\.inner\.width=1: must be 2 or more$"):
        bounds.check(config)


def test_types_stay_guarded():
    with pytest.raises(TypeError):
        make().steps = "many"


def test_a_plain_config_has_no_bounds():
    bounds.check(ml_collections.ConfigDict({"steps": 0}))
