"""Table 1 and Figure 2 of the paper: tumours in BraTS 2018.

python -m experiments.brats --data=DIR --output=DIR [--pretrain-data=UKB]

DIR and UKB as python -m ssl3d.prepare --layout=brats and --layout=ukb write them.
"""

from experiments import protocol
from experiments.analysis.published import BRATS_FIGURE, BRATS_TABLE
from experiments.engine.study import BASELINES, SCRATCH_2D, THREE_D, TWO_D, Column, Study

STUDY = Study(
    name="brats",
    title="BraTS: tumour segmentation (Table 1 and Figure 2)",
    preset="brats",
    pretraining_preset="ukb",
    methods=(*BASELINES, "supervised", SCRATCH_2D, *TWO_D, *THREE_D),
    labels=("10%", "25%", "50%", "all"),
    columns=(Column("WT", "WT"), Column("ET", "ET"), Column("TC", "TC")),
    # The paper's network and crops; its numbers of steps are not published.
    encoder={"width": 32, "depth": 5},
    pretraining={"steps": 100_000},
    finetuning={"steps": 40_000, "optimizer.learning_rate": 1e-4, "transfer.warmup_steps": 4_000},
    finetuning_slices={"batch_size": 32},
    published=BRATS_FIGURE,
    beside="WT",
    published_scores=BRATS_TABLE,
    notes=("Test cases are our own split of the training set: the official labels are hidden.",),
)

if __name__ == "__main__":
    protocol.command(STUDY)
