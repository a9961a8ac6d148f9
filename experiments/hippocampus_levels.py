"""Grading of pictures with few labels: the level of a coronal slice of the hippocampus.

python -m experiments.hippocampus_levels --data=DIR --output=DIR

DIR as python -m ssl3d.prepare --layout=msd --source=Task04_Hippocampus writes it. Every second
coronal slice becomes a picture in OUTPUT/data. Its grade comes from the labels: in front of the
hippocampus, anterior part (head), posterior part (body and tail), behind.
"""

import dataclasses
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ssl3d.data import store
from ssl3d.errors import UserError
from ssl3d.experiments import command, hippocampus
from ssl3d.experiments.engine import study

LEVELS = ("in front", "anterior", "posterior", "behind")
PARTS = ("Anterior", "Posterior")  # classes of Task04, label values 1 and 2
CORONAL, IN_PLANE = 1, (0, 2)  # axes of the prepared volumes: to the right, to the front, up
EVERY = 2  # slices; neighbours at 1 mm are nearly alike


def levels(label: np.ndarray) -> np.ndarray:
    """Grades of the coronal slices of a label map [*S]: int [slices], values index `LEVELS`.

    The larger part of a slice decides, of equal ones the anterior. Raises `ValueError` if a part is
    missing, or if a slice between labelled ones has no label.
    """
    anterior, posterior = ((label == value).sum(axis=IN_PLANE) for value in (1, 2))
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
    """Writes the slices of prepared volumes as pictures, once; raises `UserError` for other data.

    Each keeps the subject and split of its volume. Those of unlabelled volumes have no grade.
    """
    from ssl3d.experiments.engine.grid import digest  # JAX, which --help does without

    # The manifest has checksums of images and labels, and how they were prepared.
    manifest = (volumes.path / store.MANIFEST).read_text()
    origin = {"slices_of": digest(manifest), "every": EVERY}
    if (folder / store.MANIFEST).exists():
        pictures = store.read(folder)
        if pictures.extra != origin:
            remedy = "give another --output, or remove the folder"
            raise UserError(
                f"{folder}: holds slices of other volumes than {volumes.path}; {remedy}"
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
    about = dataclasses.replace(volumes, path=folder, rank=2, classes=LEVELS, cases=tuple(cases))
    name = f"{volumes.name} levels"
    store.write_manifest(dataclasses.replace(about, name=name, extra=origin))
    return store.read(folder)


def _write_slice(
    volume: store.Case, image: np.ndarray, place: int, grade: int | None, folder: Path
) -> store.Case:
    picture = np.take(image, place, axis=CORONAL)
    name = f"{volume.id}_{place:03d}"
    files = store.write_arrays(folder, name, picture)
    kept = [*IN_PLANE, 3]
    content = volume.extra.get("content")
    return dataclasses.replace(
        volume,
        id=name,
        shape=picture.shape[:-1],
        spacing=tuple(volume.spacing[axis] for axis in IN_PLANE),
        affine=tuple(tuple(volume.affine[row][column] for column in kept) for row in kept),
        labelled=False,
        grade=grade,
        foreground=None,
        files=files,
        extra={"content": f"{content}-{place}", "volume_content": content} if content else {},
    )


STUDY = study.load(
    __file__,
    derive=write_slices,
    notes=(
        *hippocampus.STUDY.notes,
        "Cases are slices, and their grades are derived from label maps.",
        "Repetitions count from 35: earlier ones suggested the task and the steps.",
        "All slices of a hippocampus are in one split, and the statistics resample hippocampi.",
    ),
)

if __name__ == "__main__":
    command.run(STUDY)
