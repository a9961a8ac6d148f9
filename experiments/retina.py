"""Figures 4 and 6 of the paper: grades of diabetic retinopathy, APTOS 2019.

python -m experiments.retina --data=DIR --output=DIR [--pretrain-data=FUNDUS]

DIR and FUNDUS as python -m ssl3d.prepare --layout=images writes them.
"""

from ssl3d.experiments import command
from ssl3d.experiments.engine import study

STUDY = study.load(__file__)

if __name__ == "__main__":
    command.run(STUDY)
