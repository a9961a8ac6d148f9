"""Configs: one file per task, `default.py` with every key, `datasets.py` with the presets."""
