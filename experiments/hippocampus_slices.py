"""Does a proxy task help 2D networks that learn from the slices of two labelled cases?

python -m experiments.hippocampus_slices --data=DIR --output=DIR [--budget=20]

Of all that was tried on the hippocampus (docs/results) this is the most promising, and this is its
test, planned before it is run: one task, and forty fresh repetitions, on which nothing was chosen.
"""

import dataclasses

from experiments import hippocampus, protocol
from experiments.engine.study import SCRATCH_2D

STUDY = dataclasses.replace(
    hippocampus.STUDY,
    name="hippocampus_slices",
    title="Hippocampus: MR segmentation by 2D networks with two labelled cases",
    methods=(SCRATCH_2D, "rotation2d"),
    labels=("2",),
    # Those before it have suggested the task, and the steps.
    first_repetition=54,
    repetitions=40,
    # Four times those of 3D scratch: after twice as many 2D scratch is not at its plateau.
    finetuning={**hippocampus.STUDY.finetuning, "steps": 1600},
    brief=(SCRATCH_2D, "rotation2d"),
    notes=(
        *hippocampus.STUDY.notes,
        "Its repetitions count from 54: those before had suggested the task and the steps.",
    ),
)

if __name__ == "__main__":
    protocol.command(STUDY)
