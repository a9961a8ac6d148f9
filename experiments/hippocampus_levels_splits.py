"""Does cpc help to grade slices of the hippocampus, over splits, encoders and learning rates?

python -m experiments.hippocampus_levels_splits --data=DIR --output=DIR

The confirmation of `hippocampus_levels`, planned before its first cell: eight splits of the
hippocampi, each with an encoder of a seed of its own and four draws of two labelled cases, at two
learning rates. It is judged by the means of the eight splits.
"""

import dataclasses

from ssl3d.experiments import command, hippocampus, hippocampus_levels
from ssl3d.experiments.engine.study import DOUBLES, SCRATCH

STUDY = dataclasses.replace(
    hippocampus_levels.STUDY,
    name="hippocampus_levels_splits",
    title="Hippocampus: the level of coronal slices, over eight splits and encoders",
    question="Does cpc2d improve the grading of slices with two labelled cases, whichever split, "
    "encoder and learning rate?",
    methods=(SCRATCH, DOUBLES[SCRATCH], "cpc2d"),
    first_repetition=101,
    repetitions=32,
    splits=8,
    encoders=8,
    arms={f"rate {rate}": {"optimizer.learning_rate": rate} for rate in (0.002, 0.005)},
    notes=(
        *hippocampus.STUDY.notes,
        "Cases are slices, and their grades are derived from label maps.",
        "Repetitions count from 101: earlier ones suggested the task, the steps and the rates.",
        "The settings were chosen on these subjects: splits, labels and encoders alone are fresh.",
    ),
)

if __name__ == "__main__":
    command.run(STUDY)
