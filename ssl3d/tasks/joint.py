"""Joint: several proxy tasks on one encoder, in every step.

The loss is the weighted sum of the parts' losses. A part is an entry of `config.parts`: the `task`
section of its own config, its `weight`, and its `crop`, limited by `config.data.crop`. Parts keep
their records, views and heads; those whose `record` compares equal share its arrays, and one that
sees a sample of another's patches takes these (`grid.Chosen`). Encodings are not shared, as every
part augments its own inputs. The first part's headline is that of all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import flax.linen as nn
import jax
import ml_collections
import numpy as np
from jax import Array
from jaxtyping import Float, PRNGKeyArray

from ssl3d import bounds, extensions, tasks
from ssl3d.data.pipeline import Example, Parts
from ssl3d.errors import UserError
from ssl3d.models import encoders
from ssl3d.tasks import Metrics, Panel, Scores, Task
from ssl3d.tasks.grid import Chosen


class Network(nn.Module):
    """Inputs by part -> outputs by part; the parts' networks hold the same encoder."""

    encoder: nn.Module
    parts: Mapping[str, nn.Module]

    def __call__(self, inputs: dict[str, Any], train: bool = False) -> dict[str, Any]:
        return {name: part(inputs[name], train) for name, part in self.parts.items()}


def configs(config: ml_collections.ConfigDict) -> dict[str, bounds.Config]:
    """The config of every part, with a crop that suits it, by the last component of its name.

    A module without an entry in `config.parts` gets one.

    Raises:
      UserError: a part that does not exist, comes twice or learns from labels.
    """
    found: dict[str, bounds.Config] = {}
    for given in config.task.parts:
        name = given.rpartition(".")[2]
        if name not in config.parts:
            extensions.module("config.task.parts", given, choices=config.parts)
            with config.unlocked():
                config.parts[name] = {"task": {"name": given}, "weight": 1.0}
        part = bounds.part(config, name)
        if name in found or tasks.needs(part) != "image":
            why = "comes twice" if name in found else "learns from labels; give proxy tasks"
            raise UserError(f"config.task.parts={tuple(config.task.parts)}: {name} {why}")
        equal = tasks.equal_axes(part)
        crop = [side - side % part.task.get("coarsen", 1) for side in part.data.crop]
        shortest = min((crop[axis] for axis in equal), default=0)
        part.data.crop = tuple(shortest if i in equal else side for i, side in enumerate(crop))
        found[name] = part
    return found


def encoded_sizes(config: ml_collections.ConfigDict) -> tuple[tuple[int, ...], ...]:
    """Those of every part, see `tasks.encoded_sizes`."""
    return tuple(size for part in configs(config).values() for size in tasks.encoded_sizes(part))


def adapt(config: ml_collections.ConfigDict, images: Sequence[np.ndarray]) -> str:
    """Lets every part set what depends on the collection, see `tasks.adapt`."""
    notes = []
    for name, part in configs(config).items():
        before = part.task.to_dict()
        notes.append(tasks.adapt(part, images))
        changed = {key: value for key, value in part.task.items() if value != before.get(key)}
        config.parts[name].task.update(changed)
    return "; ".join(filter(None, notes))


def build(config: ml_collections.ConfigDict) -> Task:
    """Raises `UserError` if the settings contradict each other."""
    parts: dict[str, Task] = {}
    for name, settings in configs(config).items():
        try:
            parts[name] = tasks.build(settings)
        except UserError as error:
            raise UserError(
                str(error).replace("config.task", f"config.parts.{name}.task")
            ) from None
    # Part -> the first part with the record that it shares, or with its own.
    wanted = {name: getattr(task.record, "whole", task.record) for name, task in parts.items()}
    source = {a: next((b for b in parts if parts[b].record == wanted[a]), a) for a in parts}
    choose = {
        name: cast(Chosen, parts[name].record).choose
        for name in parts
        if name != source[name] and parts[name].record != parts[source[name]].record
    }
    first, *others = parts
    collected_by = {name: task.collect for name, task in parts.items() if task.collect}
    scored_by = {name: task.score for name, task in parts.items() if task.score}
    recorded = tuple(dict.fromkeys(source.values()))

    def of_parts(values: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        """Metrics by part -> by name, PART_NAME; `chance` is the first part's."""
        named = {f"{part}_{key}": v for part in values for key, v in values[part].items()}
        chance = f"{first}_chance"
        return named | ({"chance": named[chance]} if chance in named else {})

    def own(name: str, record: dict[str, Any]) -> dict[str, Any]:
        of = {key.partition("/")[::2]: value for key, value in record.items()}
        its = {key: v for part in (source[name], name) for (p, key), v in of.items() if p == part}
        return Chosen.take(its) if name in choose else its

    def record(rng: np.random.Generator, example: Example, train: bool) -> Parts:
        records = {name: parts[name].record(rng, example, train) for name in recorded}
        records |= {name: function(rng) for name, function in choose.items()}
        return {f"{name}/{key}": v for name in records for key, v in records[name].items()}

    def views(key: PRNGKeyArray, record: dict[str, Array], train: bool) -> tuple[dict, dict]:
        # The first part keeps the key: alone, it sees what its task would. The others' numbers are
        # beyond those of the keys that a task splits from its own.
        keys = {n: jax.random.fold_in(key, 2**31 + i) for i, n in enumerate(parts)} | {first: key}
        seen = {n: task.views(keys[n], own(n, record), train) for n, task in parts.items()}
        return {name: seen[name][0] for name in seen}, {name: seen[name][1] for name in seen}

    def loss(outputs: dict, targets: dict) -> tuple[Float[Array, " B"], Metrics]:
        labels = {key: targets[key] for key in ("subject", "valid")}
        losses, metrics = {}, {}
        for name, task in parts.items():
            losses[name], metrics[name] = task.loss(outputs[name], targets[name] | labels)
            metrics[name] |= {"loss": (losses[name], losses[name] * 0 + 1)}
        return sum(config.parts[name].weight * losses[name] for name in parts), of_parts(metrics)

    def panels(record: dict, inputs: dict, targets: dict, outputs: Any = None) -> list[Panel]:
        boxes, shown = list[tasks.Box](), list[Panel]()
        for name, task in parts.items():
            answer = outputs and outputs[name]
            whole, *rest = task.panels(own(name, record), inputs[name], targets[name], answer)
            boxes += whole.boxes
            shown += [panel._replace(title=f"{name}: {panel.title}") for panel in rest]
        return [Panel("whole image", None, tuple(boxes)), *shown]

    def collect(inputs: dict, outputs: dict, targets: dict) -> dict[str, Any]:
        return {n: f(inputs[n], outputs[n], targets[n]) for n, f in collected_by.items()}

    def score(collected: Any, subjects: np.ndarray, repeats: np.ndarray) -> Scores:
        return of_parts({n: f(collected[n], subjects, repeats) for n, f in scored_by.items()})

    encoder = encoders.build(config.encoder)
    return Task(
        record=record,
        views=views,
        network=Network(encoder, {n: t.network.clone(encoder=encoder) for n, t in parts.items()}),
        loss=loss,
        panels=panels,
        headline=f"{first}_{parts[first].headline}",
        shown=tuple(f"{name}_{parts[name].headline}" for name in others),
        spatial=tuple(f"{n}/{key}" for n in recorded for key in parts[n].spatial),
        collect=collect if collected_by else None,
        score=score if scored_by else None,
        needs_whole_batch=any(task.needs_whole_batch for task in parts.values()),
        learns_from_noise=parts[first].learns_from_noise,
    )
