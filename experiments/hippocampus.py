"""The protocol on a small public real set: the hippocampus, Task04 of the Decathlon.

python -m experiments.hippocampus --data=DIR --output=DIR [--budget=20]

DIR as python -m ssl3d.prepare --layout=msd --source=Task04_Hippocampus writes it.
"""

from experiments import protocol
from experiments.engine.study import BASELINES, THREE_D, Column, Study

STUDY = Study(
    name="hippocampus",
    title="Hippocampus: MR segmentation with few labels",
    preset="hippocampus",
    methods=(*BASELINES, *THREE_D, "rpl2d", "rotation2d"),
    labels=("2", "8", "32", "all"),
    columns=(Column("dice", "mean"), Column("anterior", 1), Column("posterior", 2)),
    # Small enough for 8 hours on two cores over the whole grid.
    encoder={"width": 8, "depth": 4},
    # At most six minutes each on one of them.
    pretraining_of={
        "cpc3d": {"steps": 300},
        "exemplar3d": {"steps": 200},
        "jigsaw3d": {"steps": 300},
        "rotation3d": {"steps": 400},
        "rpl3d": {"steps": 600},
        "rpl2d": {"steps": 1000},
        "rotation2d": {"steps": 600},
    },
    finetuning={
        "data.crop": (32, 40, 32),
        "batch_size": 2,
        "steps": 400,
        # The encoder learns from the first step; freezing it did not help (results/).
        "transfer.warmup_steps": 0,
    },
    finetuning_of={"8": {"steps": 800}, "32": {"steps": 1200}, "all": {"steps": 2000}},
    finetuning_slices={"data.crop": (32, 40), "batch_size": 32},
    validations=10,
    notes=(
        "The paper has no numbers on these data.",
        "The source has no subject ids: splits are by case, left and right of one person may be "
        "on both sides.",
    ),
)

if __name__ == "__main__":
    protocol.command(STUDY)
