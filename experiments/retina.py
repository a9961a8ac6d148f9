"""Figures 4 and 6 of the paper: grades of diabetic retinopathy, APTOS 2019.

python -m experiments.retina --data=DIR --output=DIR [--pretrain-data=FUNDUS]

DIR and FUNDUS as python -m ssl3d.prepare --layout=images writes them.
"""

from experiments import protocol
from experiments.analysis.published import RETINA_CONVERGENCE, RETINA_FIGURE
from experiments.engine.study import BASELINES, SCRATCH, TWO_D, Column, Study

STUDY = Study(
    name="retina",
    title="Retina: grades of diabetic retinopathy (Figures 4 and 6)",
    preset="retina",
    downstream="classify",
    rank=2,
    methods=(*BASELINES, *TWO_D),
    labels=("5%", "10%", "25%", "50%", "all"),
    repetitions=5,
    columns=(Column("kappa", "kappa"),),
    # The paper's DenseNet and learning rate; its 20 epochs leave scratch under-trained.
    encoder={"kind": "densenet121"},
    pretraining={"steps": 100_000},
    finetuning={
        "steps": 10_000,
        "optimizer.learning_rate": 1e-4,
        "transfer.warmup_steps": 500,
        "task.head": "ordinal",
    },
    brief=(SCRATCH, "untrained-frozen", "rotation2d"),
    published=RETINA_FIGURE,
    beside="kappa",
    published_convergence=RETINA_CONVERGENCE,
    notes=("One fixed test set in place of the paper's five folds; five label subsets.",),
)

if __name__ == "__main__":
    protocol.command(STUDY)
