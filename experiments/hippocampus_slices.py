"""Does a proxy task help 2D networks that learn from the slices of two labelled cases?

python -m experiments.hippocampus_slices --data=DIR --output=DIR

The confirmatory test of the most promising attempt on the hippocampus (results/): one task and
forty fresh repetitions, planned before the run.
"""

import dataclasses

from ssl3d.experiments import command, hippocampus
from ssl3d.experiments.engine.study import SCRATCH_2D

STUDY = dataclasses.replace(
    hippocampus.STUDY,
    name="hippocampus_slices",
    title="Hippocampus: MR segmentation by 2D networks with two labelled cases",
    question="Does a proxy task improve 2D segmentation of slices with two labelled cases?",
    methods=(SCRATCH_2D, "rotation2d"),
    labels=("2",),
    first_repetition=54,
    repetitions=40,
    # Four times those of 3D scratch; after twice as many, 2D scratch is below its plateau.
    finetuning={**hippocampus.STUDY.finetuning, "steps": 1600},
    notes=(
        *hippocampus.STUDY.notes,
        "Repetitions count from 54: earlier ones suggested the task and the steps.",
    ),
)

if __name__ == "__main__":
    command.run(STUDY)
