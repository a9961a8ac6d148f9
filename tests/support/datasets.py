"""A small prepared data set of any rank."""

import dataclasses

import numpy as np

from ssl3d.data import store

SIDE = 24  # voxels of the shared data sets along every axis
SPLITS = {"train": 8, "val": 4, "test": 2}


def write_dataset(folder, rank, channels, seed=0, splits=SPLITS, side=SIDE):
    """A prepared data set of smooth random images that are brighter towards the end of each axis.

    The first two cases are of one subject, as fellow eyes are.
    """
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, side)] * rank, indexing="ij"), axis=-1)
    slope = np.arange(1, rank + 1) / rank
    cases = []
    for index, split in enumerate(name for name, count in splits.items() for _ in range(count)):
        waves = [np.sin(grid @ rng.normal(0, 3, rank) + rng.uniform(0, 6)) for _ in range(channels)]
        image = np.stack(waves, axis=-1) + (grid @ slope)[..., None]
        image += rng.normal(0, 0.1, image.shape)
        label = (image[..., 0] > 1).astype(np.uint8)
        case_id = f"case_{index:02d}"
        files = store.write_arrays(folder, case_id, image, label if rank == 3 else None)
        cases.append(
            store.Case(
                id=case_id,
                subject=f"subject_{max(index, 1):02d}",
                split=split,
                shape=image.shape[:-1],
                channels=channels,
                spacing=(1.0,) * rank,
                affine=tuple(map(tuple, np.eye(rank + 1).tolist())),
                labelled=rank == 3,
                grade=None if rank == 3 else index % 3,
                order=index,
                foreground=((2, side - 2),) * rank,
                files=files,
            )
        )
    dataset = store.Dataset(
        path=folder,
        name=f"tiny {rank}D",
        rank=rank,
        modalities=tuple(f"modality {i}" for i in range(channels)),
        classes=("background", "bright") if rank == 3 else ("none", "mild", "severe"),
        splits_by="subject",
        cases=tuple(cases),
    )
    store.write_manifest(dataset)
    return dataset


def forget_digests(folder):
    """Makes the data set one of a version that kept no digests."""
    dataset = store.read(folder)
    cases = tuple(dataclasses.replace(case, files={}) for case in dataset.cases)
    store.write_manifest(dataclasses.replace(dataset, cases=cases))
