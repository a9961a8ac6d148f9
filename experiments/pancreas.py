"""Figures 3 and 5 of the paper: pancreas and tumour in CT, Task07 of the Decathlon.

python -m experiments.pancreas --data=DIR --output=DIR

DIR as python -m ssl3d.prepare --layout=msd --source=Task07_Pancreas writes it; the 139 unlabelled
cases are pretrained on too.
"""

from experiments import protocol
from experiments.analysis.published import PANCREAS_CONVERGENCE, PANCREAS_FIGURE
from experiments.engine.study import BASELINES, SCRATCH_2D, THREE_D, TWO_D, Column, Study

STUDY = Study(
    name="pancreas",
    title="Pancreas: organ and tumour segmentation in CT (Figures 3 and 5)",
    preset="pancreas",
    methods=(*BASELINES, *THREE_D, SCRATCH_2D, *TWO_D),
    labels=("5%", "10%", "25%", "50%", "all"),
    columns=(Column("dice", "mean"), Column("pancreas", 1), Column("tumour", 2)),
    # The paper's network and crops. 400 epochs of 212 cases in batches of two, 25 of warm-up.
    encoder={"width": 32, "depth": 5},
    pretraining={"steps": 100_000},
    finetuning={"steps": 42_000, "optimizer.learning_rate": 1e-4, "transfer.warmup_steps": 2_600},
    finetuning_slices={"batch_size": 64},
    published=PANCREAS_FIGURE,
    beside="reference_dice",
    published_convergence=PANCREAS_CONVERGENCE,
)

if __name__ == "__main__":
    protocol.command(STUDY)
