"""Grades of pictures with few labels: where on the hippocampus' long axis is a coronal slice?

python -m experiments.hippocampus_levels --data=DIR --output=DIR [--budget=20]

DIR as python -m ssl3d.prepare --layout=msd --source=Task04_Hippocampus writes it. Every second
coronal slice of its volumes becomes a picture, once, in OUTPUT/data; the labels grade it: in front
of the hippocampus, at its anterior part (the head), at the posterior one (body and tail), behind.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from tqdm import tqdm

from experiments import hippocampus, protocol
from experiments.engine.study import SCRATCH, Column, Study
from experiments.engine.study_data import short_hash
from ssl3d.data import store
from ssl3d.errors import UserError

LEVELS = ("in front", "anterior", "posterior", "behind")
# Task04's classes, and their label values.
PARTS = ("Anterior", "Posterior")
ANTERIOR, POSTERIOR = 1, 2
# Axes of the prepared volumes, which run to the right, to the front and up.
CORONAL, IN_PLANE = 1, (0, 2)
EVERY = 2  # slices; neighbours of 1 mm are nearly alike


def levels(label: np.ndarray) -> np.ndarray:
    """Grades of the coronal slices of a label map [*S]: int [slices], values index `LEVELS`.

    Where both parts are in a slice, the larger one counts, of equal ones the anterior.

    Raises:
      ValueError: one of the parts is not there, or a slice between others has neither.
    """
    anterior, posterior = ((label == value).sum(axis=IN_PLANE) for value in (ANTERIOR, POSTERIOR))
    if not anterior.any() or not posterior.any():
        raise ValueError("no anterior or no posterior part")
    organ = np.flatnonzero(anterior + posterior)
    if len(organ) < organ[-1] + 1 - organ[0]:
        raise ValueError("a coronal slice within the hippocampus has no label")
    grades = np.where(anterior >= posterior, LEVELS.index("anterior"), LEVELS.index("posterior"))
    grades[organ[-1] + 1 :] = LEVELS.index("in front")
    grades[: organ[0]] = LEVELS.index("behind")
    return grades


def write_slices(volumes: store.Dataset, folder: Path) -> store.Dataset:
    """Writes the pictures of prepared volumes, or returns those that are there already.

    Each keeps its volume's subject and split; those of unlabelled volumes have no grade.

    Raises:
      UserError: other data than the hippocampus, or pictures of others in the folder.
    """
    # The manifest has checksums of images and labels, and how they were prepared.
    manifest = (volumes.path / store.MANIFEST).read_text()
    origin = {"slices_of": short_hash(manifest), "every": EVERY}
    if (folder / store.MANIFEST).exists():
        pictures = store.read(folder)
        if pictures.extra != origin:
            raise UserError(
                f"{folder}: holds slices of other volumes than {volumes.path}; give another "
                "--output, or remove the folder"
            )
        return pictures
    if volumes.rank != 3 or volumes.classes[1:] != PARTS:
        raise UserError(
            f"{volumes.path}: needs volumes with labels of the anterior and the posterior "
            "hippocampus; prepare Task04 of the Decathlon"
        )
    cases = []
    for volume in tqdm(volumes.cases, "cutting slices", unit="case", disable=None):
        image, grades = store.load_image(volumes, volume), None
        if volume.labelled:
            try:
                grades = levels(store.load_label(volumes, volume))
            except ValueError as error:
                raise UserError(f"{volumes.path}: {volume.id}: {error}; leave it out") from None
        for place in range(0, volume.shape[CORONAL], EVERY):
            grade = None if grades is None else int(grades[place])
            cases.append(_write_slice(volume, image, place, grade, folder))
    store.write_manifest(
        store.Dataset(
            path=folder,
            name=f"{volumes.name} levels",
            rank=2,
            modalities=volumes.modalities,
            classes=LEVELS,
            splits_by=volumes.splits_by,
            cases=tuple(cases),
            extra=origin,
        )
    )
    return store.read(folder)


def _write_slice(
    volume: store.Case, image: np.ndarray, place: int, grade: int | None, folder: Path
) -> store.Case:
    picture = np.take(image, place, axis=CORONAL)
    name = f"{volume.id}_{place:03d}"
    store.write_arrays(folder, name, picture)
    kept = [*IN_PLANE, len(volume.shape)]
    content = volume.extra.get("content")
    return store.Case(
        id=name,
        subject=volume.subject,
        split=volume.split,
        shape=picture.shape[:-1],
        channels=volume.channels,
        spacing=tuple(volume.spacing[axis] for axis in IN_PLANE),
        affine=tuple(tuple(volume.affine[row][column] for column in kept) for row in kept),
        grade=grade,
        order=volume.order,
        extra={"content": f"{content}-{place}", "volume_content": content} if content else {},
    )


STUDY = Study(
    name="hippocampus_levels",
    title="Hippocampus: the level of coronal slices with few labelled cases",
    preset="hippocampus",
    downstream="classify",
    rank=2,
    derive=write_slices,
    methods=(SCRATCH, "cpc2d"),
    labels=("2",),
    # Those before it have suggested the task, the width and the steps (docs/results).
    first_repetition=35,
    repetitions=32,
    columns=(Column("kappa", "kappa"),),
    # Small enough for scratch to be trained to its end.
    encoder={"width": 8, "depth": 4},
    # The preset's crops of patches are of axial slices; coronal ones are about 35 x 36 mm.
    pretraining={"batch_size": 32},
    pretraining_of={
        "cpc2d": {"steps": 800, "data.crop": (35, 35), "batch_size": 16},
        "jigsaw2d": {"steps": 600, "data.crop": (33, 33)},
        "rotation2d": {"steps": 600, "data.crop": (36, 36)},
        "rpl2d": {"steps": 1000, "data.crop": (33, 33)},
    },
    finetuning={
        "data.crop": (36, 36),
        "batch_size": 32,
        "steps": 1600,
        "task.head": "ordinal",
    },
    validations=8,
    brief=(SCRATCH, "cpc2d"),
    notes=(
        *hippocampus.STUDY.notes,
        "Grades are of slices and derived from label maps.",
        "Its repetitions count from 35: those before had suggested the task and the steps.",
        "Its cases are slices. All of a hippocampus are in one split, and the statistics resample "
        "hippocampi.",
    ),
)

if __name__ == "__main__":
    protocol.command(STUDY)
