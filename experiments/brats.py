"""Table 1 and Figure 2 of the paper: tumours in BraTS 2018.

python -m experiments.brats --data=DIR --output=DIR [--pretrain-data=UKB]

DIR and UKB as python -m ssl3d.prepare --layout=brats and --layout=ukb write them.
"""

from ssl3d.experiments import command
from ssl3d.experiments.engine import study

STUDY = study.load(__file__)

if __name__ == "__main__":
    command.run(STUDY)
