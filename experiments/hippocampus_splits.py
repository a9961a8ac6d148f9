"""Do proxy tasks help to segment the hippocampus with few labels, over splits and encoders?

python -m experiments.hippocampus_splits --data=DIR --output=DIR

Planned before its first cell: eight splits of the hippocampi, each with an encoder of a seed of its
own per task, and one draw of two and of eight labelled cases. It is judged by the eight splits.
"""

import dataclasses

from ssl3d.experiments import command, hippocampus
from ssl3d.experiments.engine.study import DOUBLES, SCRATCH

STUDY = dataclasses.replace(
    hippocampus.STUDY,
    name="hippocampus_splits",
    title="Hippocampus: MR segmentation with few labels, over eight splits and encoders",
    question="Does any of four proxy tasks improve segmentation with two or eight labelled cases, "
    "whichever split and encoder?",
    methods=(SCRATCH, DOUBLES[SCRATCH], "rpl3d", "jigsaw3d", "cpc3d", "mae3d"),
    labels=("2", "8"),
    first_repetition=101,
    repetitions=8,
    splits=8,
    encoders=8,
    notes=(
        *hippocampus.STUDY.notes,
        "Repetitions count from 101: earlier ones suggested the steps.",
        "The settings were chosen on these subjects: splits, labels and encoders alone are fresh.",
    ),
)

if __name__ == "__main__":
    command.run(STUDY)
