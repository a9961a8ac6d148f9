"""Bounds of config values and values that follow from others, declared beside the key.

    config = Config()
    config.steps = bounded(1000, at_least(1))
    config.warmup = derived(config, tenth_of_the_steps)

sets a plain 1000 and remembers the bound; `check` refuses a later value outside it. The warm-up
follows the steps: `derive` computes it again after overrides, unless it was set itself.
"""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import ml_collections

from ssl3d.errors import UserError


class Bound(NamedTuple):
    """A condition on a value; without lambdas, so that configs can be pickled.

    Attributes:
      holds: whether a value satisfies it.
      words: what completes "must be ..." in the error.
    """

    holds: Callable[[Any], bool]
    words: str


class Bounded(NamedTuple):
    """A value on its way into a `Config`, with its bound."""

    value: Any
    bound: Bound


class Derived(NamedTuple):
    """A value on its way into a `Config`, with the rule it follows from the whole config."""

    value: Any
    rule: Callable[[Any], Any]


class Pending(ValueError):
    """What a rule follows from is not there yet; the message completes "it is ..."."""


def derived(config: Config, rule: Callable[[Any], Any], pending: Any = None) -> Any:
    """The value to assign to a key that follows from other keys of `config`.

    Args:
      rule: the whole config -> the value; without lambdas, so that configs can be pickled.
      pending: the value as long as the rule raises `Pending`.
    """
    try:
        return Derived(rule(config), rule)
    except Pending:
        return Derived(pending, rule)


def bounded(value: Any, bound: Bound) -> Any:
    """The value to assign to a key of a `Config`, which stores it plainly."""
    return Bounded(value, bound)


def at_least(least: float) -> Bound:
    return Bound(partial(operator.le, least), f"{least} or more")


def one_of(*choices: object) -> Bound:
    return Bound(choices.__contains__, " or ".join(map(str, choices)))


def _probability(value: float) -> bool:
    return 0 <= value <= 1


def _share(value: float) -> bool:
    return 0 <= value < 1


def _nonzero_share(value: float) -> bool:
    return 0 < value <= 1


def whole_numbers(values: Sequence[object]) -> bool:
    """Whether all are integers of at least 1."""
    return all(isinstance(value, int) and value >= 1 for value in values)


POSITIVE = Bound(partial(operator.lt, 0), "above 0")
PROBABILITY = Bound(_probability, "between 0 and 1")
SHARE = Bound(_share, "at least 0 and below 1")
NONZERO_SHARE = Bound(_nonzero_share, "above 0 and at most 1")
COUNTS = Bound(whole_numbers, "whole numbers from 1, e.g. (256,)")


class _Note(NamedTuple):
    """What a `Config` knows of a key beside its value."""

    bound: Bound | None = None
    rule: Callable[[Any], Any] | None = None
    automatic: bool = False


class Config(ml_collections.ConfigDict):
    """A `ConfigDict` that keeps the bounds and rules of its keys, also through copies.

    Its sections are `Config`s too. Neither JSON nor equality sees bounds or rules. Assigning a
    value to a derived key ends its rule.
    """

    if TYPE_CHECKING:
        # The library declares a union of all types a value may have, which fits no use.
        def __getattr__(self, attribute: str) -> Any: ...

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        object.__setattr__(self, "_notes", {})
        super().__init__(*args, **kwargs)

    def __setitem__(self, key: str, value: Any) -> None:
        note = _Note(self._note(key).bound)
        if isinstance(value, Bounded):
            note, value = _Note(value.bound), value.value
        if isinstance(value, Derived):
            note = self._note(key)._replace(bound=note.bound, rule=value.rule)
            value = value.value
        self._notes[key] = note
        if isinstance(value, dict | ml_collections.ConfigDict) and not isinstance(value, Config):
            value = Config(value)
        super().__setitem__(key, value)

    def copy_and_resolve_references(self, visit_map: dict[int, Any] | None = None) -> Config:
        copy = super().copy_and_resolve_references(visit_map)
        copy._notes.update(self._notes)
        return copy

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._notes.update(state["_notes"])

    def _note(self, key: str) -> _Note:
        return self._notes.get(key, _Note())


def make_automatic(config: Config, key: str) -> None:
    """Marks the value of a key as the least one, which the run adapts to its devices."""
    config._notes[key] = config._note(key)._replace(automatic=True)


def is_automatic(config: ml_collections.ConfigDict, key: str) -> bool:
    """Whether `make_automatic` was called since a value was assigned to the key."""
    return isinstance(config, Config) and config._note(key).automatic


def derive(config: ml_collections.ConfigDict) -> None:
    """Computes the derived values again, in place.

    Where other values are wrong, e.g. a crop of letters, the old one stays: the checks name them.
    """
    for _, section in _named_sections(config):
        for key, rule in rules(section).items():
            if key in section:
                with contextlib.suppress(TypeError, ValueError, ZeroDivisionError):
                    section[key] = Derived(rule(config), rule)


def rules(section: Config) -> dict[str, Callable[[Any], Any]]:
    """The derived keys of a section, each with its rule."""
    return {key: note.rule for key, note in section._notes.items() if note.rule}


def pending(config: ml_collections.ConfigDict) -> dict[str, str]:
    """The keys whose rules wait for something, and the words of their `Pending`."""
    found = {}
    for prefix, section in _named_sections(config):
        for key, rule in rules(section).items():
            try:
                rule(config)
            except Pending as reason:
                found[prefix + key] = str(reason)
            except (TypeError, ValueError, ZeroDivisionError):
                continue  # other values are wrong, which the checks name
    return found


def part(config: ml_collections.ConfigDict, name: str) -> Config:
    """The config as its part `config.parts.NAME` sees it, without rules for the part's values.

    It has the part's `task` for its own, and the part's `crop` where that is smaller.

    Raises:
      UserError: the part has no valid crop.
    """
    given = config.parts[name]
    seen = Config(config.to_dict())
    del seen.parts
    seen.task = given.task.to_dict()
    if not whole_numbers(config.data.crop) or len(config.data.crop) != config.rank:
        return seen  # the run's own crop is at fault
    crop = given.get("crop", config.data.crop)
    if not whole_numbers(crop) or len(crop) != config.rank:
        raise UserError(
            f"config.parts.{name}.crop={crop!r}: must be {config.rank} whole numbers of voxels"
        )
    seen.data.crop = tuple(map(min, zip(crop, config.data.crop, strict=True)))
    return seen


def _named_sections(
    config: ml_collections.ConfigDict, prefix: str = ""
) -> Iterator[tuple[str, Config]]:
    if isinstance(config, Config):
        yield prefix, config
    for key, value in config.items():
        if isinstance(value, ml_collections.ConfigDict):
            yield from _named_sections(value, f"{prefix}{key}.")


def dotted(
    config: Mapping[str, Any] | ml_collections.ConfigDict, prefix: str = ""
) -> dict[str, Any]:
    """Value by dotted key of a config or of nested dictionaries, in the keys' order."""
    values: dict[str, Any] = {}
    for key, value in config.items():
        nested = isinstance(value, dict | ml_collections.ConfigDict)
        values |= dotted(value, f"{prefix}{key}.") if nested else {prefix + key: value}
    return values


def check(config: ml_collections.ConfigDict) -> None:
    """Raises `UserError` for the first value outside its bound, with its key."""
    for key, value, bound in _bounded_values(config):
        if not bound.holds(value):
            raise UserError(f"config.{key}={value!r}: must be {bound.words}")


def _bounded_values(
    config: ml_collections.ConfigDict, prefix: str = ""
) -> Iterator[tuple[str, Any, Bound]]:
    for key, value in config.items():
        if isinstance(value, ml_collections.ConfigDict):
            yield from _bounded_values(value, f"{prefix}{key}.")
        elif isinstance(config, Config) and (bound := config._note(key).bound):
            yield f"{prefix}{key}", value, bound
