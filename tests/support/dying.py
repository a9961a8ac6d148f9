"""Work for a process of its own, which one of the paths kills."""

import os
import signal


def die_for(path):
    if path.stem == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    return path.stem
