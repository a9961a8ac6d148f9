"""The protocol without data of one's own: segmentation of tumours in the brain phantom.

python -m experiments.phantom [--output=DIR] [--budget=20]
"""

from configs import datasets
from experiments import protocol
from experiments.engine.study import BASELINES, THREE_D, Column, Study

STUDY = Study(
    name="phantom",
    title="Phantom brain: tumour segmentation with few labels",
    preset="phantom_brain",
    methods=(*BASELINES, *THREE_D, "rpl2d", "rotation2d"),
    labels=("5%", "all"),
    columns=(Column("WT", "WT"), Column("TC", "TC"), Column("ET", "ET"), Column("dice", "mean")),
    # Small enough for 3 hours on two cores over the whole grid.
    encoder={"width": 8, "depth": 4},
    pretraining={"steps": 200},
    finetuning={
        "data.crop": (32, 32, 32),
        "batch_size": 2,
        "steps": 600,
        # With these, twice the steps change nothing at 5 %.
        **{f"augment.{key}": value for key, value in datasets.MILD.items()},
        # The encoder learns from the first step, as in the study of the hippocampus.
        "transfer.warmup_steps": 0,
    },
    finetuning_of={"all": {"steps": 900}},
    finetuning_slices={"data.crop": (64, 64), "batch_size": 16},
    validations=10,
    notes=("Synthetic images: what holds here need not hold on patients.",),
)

if __name__ == "__main__":
    protocol.command(STUDY)
