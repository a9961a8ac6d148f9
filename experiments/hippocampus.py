"""The protocol on a small public real set: the hippocampus, Task04 of the Decathlon.

python -m experiments.hippocampus --data=DIR --output=DIR

DIR as python -m ssl3d.prepare --layout=msd --source=Task04_Hippocampus writes it.
"""

from ssl3d.experiments import command
from ssl3d.experiments.engine import study

STUDY = study.load(__file__)

if __name__ == "__main__":
    command.run(STUDY)
