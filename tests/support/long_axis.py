"""Prepared hippocampi whose levels are known, of a few voxels."""

import numpy as np

from ssl3d.data import store

# Voxels of each part in the coronal slices, from behind to the front, and their grades.
POSTERIOR, ANTERIOR = [0, 0, 3, 4, 5, 2, 0, 0, 0], [0, 0, 0, 0, 1, 6, 4, 0, 0]
GRADES = [3, 3, 2, 2, 2, 1, 1, 0, 0]


def label_map(anterior, posterior):
    """[12, slices, 12], whose coronal slices hold so many voxels of each part."""
    label = np.zeros((12, len(anterior), 12), np.uint8)
    for place, (front, back) in enumerate(zip(anterior, posterior, strict=True)):
        label[:front, place, 0] = 1
        label[:back, place, 1] = 2
    return label


def write_hippocampi(folder, classes=("background", "Anterior", "Posterior"), content=""):
    """Six, of all splits, the later the more slices behind the organ.

    Args:
      content: what their checksums begin with; "" for none.
    """
    random = np.random.default_rng(0)
    cases = []
    for number, split in enumerate(["train", "train", "train", "val", "test", "unlabelled"]):
        label = label_map([0] * number + ANTERIOR, [0] * number + POSTERIOR)
        image = random.normal(size=(*label.shape, 1))
        image[..., 0] += label
        labelled = split != "unlabelled"
        # Of unlike lengths: sorted as text, slices of 10 come before those of 9.
        name = f"case_{number + 7}"
        store.write_arrays(folder, name, image, label if labelled else None)
        cases.append(
            store.Case(
                id=name,
                subject=f"subject_{number}",
                split=split,
                shape=label.shape,
                channels=1,
                spacing=(1.0, 2.0, 3.0),
                affine=tuple(map(tuple, np.diag([1.0, 2.0, 3.0, 1.0]).tolist())),
                labelled=labelled,
                order=number,
                extra={"content": f"{content}{number}"} if content else {},
            )
        )
    store.write_manifest(
        store.Dataset(
            path=folder,
            name="hippocampi",
            rank=3,
            modalities=("MRI",),
            classes=classes,
            splits_by="case",
            cases=tuple(cases),
        )
    )
    return store.read(folder)
