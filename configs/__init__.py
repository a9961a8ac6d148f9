"""One config per task and rank; `default.py` has every key, `datasets.py` the presets.

Import them as `ssl3d.configs`, which a checkout and an installed package both have.
"""

import importlib
import sys

if __name__ == "configs":  # imported from the root of a checkout
    # The same modules: a config of one's own may add to `datasets.PRESETS`.
    sys.modules[__name__] = importlib.import_module("ssl3d.configs")
