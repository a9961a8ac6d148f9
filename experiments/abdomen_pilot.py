"""The pilot of `experiments.abdomen`: in which setting does an oracle's encoder clearly gain?

python -m experiments.abdomen_pilot [--output=DIR] [--set=KEY=VALUE]

Scratch and the oracle alone, at two lengths and learning rates of fine-tuning, on subjects that the
study does not see. Its results choose settings and are no evidence.
"""

import dataclasses

from ssl3d.experiments import abdomen, command
from ssl3d.experiments.engine.study import DOUBLES, SCRATCH

STUDY = dataclasses.replace(
    abdomen.STUDY,
    name="abdomen_pilot",
    title="Phantom abdomen: a pilot with the positive control alone",
    question="In which setting does an encoder trained on the labels of other subjects help most?",
    methods=(SCRATCH, DOUBLES[SCRATCH], "supervised"),
    first_repetition=1,
    repetitions=3,
    encoders=1,
    arms={
        f"{steps} steps at {rate}": {"steps": steps, "optimizer.learning_rate": rate}
        for steps, rate in ((400, 0.004), (800, 0.004), (800, 0.001))
    },
    data={**abdomen.STUDY.data, "data.phantom.seed": 2},
)

if __name__ == "__main__":
    command.run(STUDY)
