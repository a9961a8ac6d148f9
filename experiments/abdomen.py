"""A positive control: phantom abdomens, where an encoder trained on other subjects' labels gains.

python -m experiments.abdomen [--output=DIR] [--pretrain-data=DIR]

2,000 subjects to pretrain on are generated on first use. `experiments.abdomen_pilot` finds the
setting; this study is planned with it before its first cell.
"""

from ssl3d.experiments import command
from ssl3d.experiments.engine import study

STUDY = study.load(__file__)

if __name__ == "__main__":
    command.run(STUDY)
