"""Where a proxy task may help: 2D networks that learn from the slices of two labelled cases.

python -m experiments.hippocampus_slices --data=DIR --output=DIR [--budget=20]

Of all that was tried on the hippocampus (docs/results/attempts.md) this was the most promising, and
this is its test, planned before it was run: one task, its number of repetitions, and repetitions
of their own, with which nothing had been chosen.
"""

import dataclasses

from experiments import hippocampus, protocol
from experiments.study import SCRATCH_2D
from ssl3d import command

STUDY = dataclasses.replace(
    hippocampus.STUDY,
    name="hippocampus_slices",
    title="Hippocampus: MR segmentation by 2D networks with two labelled cases",
    methods=(SCRATCH_2D, "rotation2d"),
    labels=("2",),
    # 1 to 13 had suggested the task, and that scratch in 2D needs twice the steps.
    first_repetition=14,
    repetitions=40,
    finetuning={**hippocampus.STUDY.finetuning, "steps": 800},
    brief=(SCRATCH_2D, "rotation2d"),
)

if __name__ == "__main__":
    command.run(lambda arguments: protocol.main(STUDY, arguments))
