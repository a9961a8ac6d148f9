"""The protocol without data of one's own: segmentation of tumours in the brain phantom.

python -m experiments.phantom [--output=DIR]
"""

from ssl3d.experiments import command
from ssl3d.experiments.engine import study

STUDY = study.load(__file__)

if __name__ == "__main__":
    command.run(STUDY)
