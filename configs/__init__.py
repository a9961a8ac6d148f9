"""One config per task and rank; `default.py` has every key, `datasets.py` the presets."""
