"""Figures 3 and 5 of the paper: pancreas and tumour in CT, Task07 of the Decathlon.

python -m experiments.pancreas --data=DIR --output=DIR

DIR as python -m ssl3d.prepare --layout=msd --source=Task07_Pancreas writes it; the 139 unlabelled
cases are pretrained on too.
"""

from ssl3d.experiments import command
from ssl3d.experiments.engine import study

STUDY = study.load(__file__)

if __name__ == "__main__":
    command.run(STUDY)
