"""Further splits of a prepared data set: its labelled subjects randomised again, files linked."""

import dataclasses
import os
import shutil
from pathlib import Path

import numpy as np

from ssl3d.data import store
from ssl3d.errors import UserError


def deal(dataset: store.Dataset, number: int, folder: Path) -> store.Dataset:
    """The data set in `folder` with its labelled subjects in other splits of the same sizes.

    The shuffle is seeded with `number`, and decides the order of the label subsets too. Subjects
    without a label stay where they are: nothing is tested on them. Written on first use; raises
    `UserError` if the folder holds the split of other data.
    """
    cases = _dealt(dataset, number)
    extra = dataset.extra | {"dealt": number}
    wanted = dataclasses.replace(dataset, path=folder, cases=cases, extra=extra)
    if (folder / store.MANIFEST).exists():
        found = store.read(folder)
        if found != wanted:
            raise UserError(
                f"{folder}: holds a split of other data than {dataset.path}; give another "
                "--output, or remove the folder"
            )
        return found
    for case in cases:
        for path in (store.image_path, store.label_path):
            _link(path(dataset.path, case.id), path(folder, case.id))
    store.write_manifest(wanted)
    return store.read(folder)


def _dealt(dataset: store.Dataset, number: int) -> tuple[store.Case, ...]:
    splits = {c.subject: c.split for c in dataset.cases if c.labelled or c.grade is not None}
    names = sorted(splits)
    shuffled = [names[i] for i in np.random.RandomState(number).permutation(len(names))]
    places: dict[str, tuple[str, int]] = {}
    for split in store.SPLITS:
        count = list(splits.values()).count(split)
        places |= {name: (split, order) for order, name in enumerate(shuffled[:count])}
        shuffled = shuffled[count:]
    return tuple(
        dataclasses.replace(case, split=places[case.subject][0], order=places[case.subject][1])
        if case.subject in places
        else case
        for case in dataset.cases
    )


def _link(file: Path, link: Path) -> None:
    """A hard link, as a prepared folder holds no others; a copy where there are none."""
    if not file.exists() or link.exists():
        return
    link.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(file, link)
    except OSError:
        shutil.copy2(file, link)
