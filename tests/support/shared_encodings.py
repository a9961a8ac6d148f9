"""What K = 8 puzzles and Q = 8 queries cost, against one of each, per training step.

python -m tests.support.shared_encodings [ROUNDS]

Puzzles share the encodings of their patches, and queries that of the centre: eight queries encode
nine patches where one encodes two. Prints the time of both steps and their ratio.
"""

import sys

from ssl3d import tasks, xla
from ssl3d.configs import jigsaw3d, rpl3d
from tests.support.steps_timed import in_turns, load, step_of

PAIRS = ((jigsaw3d, "puzzles", 1.3), (rpl3d, "queries", 5.0))


def main(rounds=5):
    xla.keep_memory()
    print(load())
    for module, key, most in PAIRS:
        functions = {}
        for count in (1, 8):
            config = module.get_config("phantom")
            config.task[key] = count
            functions[count] = step_of(config, tasks.build(config))[0]
        seconds = in_turns(functions, rounds)
        one, eight = seconds[1], seconds[8]
        print(
            f"{config.name}, {key} 1: {1e3 * one:.0f} ms, 8: {1e3 * eight:.0f} ms; "
            f"ratio {eight / one:.2f} (goal <= {most})",
            flush=True,
        )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
