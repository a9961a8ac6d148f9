"""A pilot of grades: does an oracle's encoder gain on the phantom fundus?

python -m experiments.fundus_pilot [--output=DIR] [--set=KEY=VALUE]

The alternative to `experiments.abdomen_pilot`. Its results choose settings and are no evidence.
"""

from ssl3d.experiments import command
from ssl3d.experiments.engine import study

STUDY = study.load(__file__)

if __name__ == "__main__":
    command.run(STUDY)
