"""Downstream: predictions of trained networks, their scores, and linear probes of frozen features.

`evaluate_split`, `predict_files` and `linear_probe` are the bodies of commands. What depends on the
task is in `segmentation` and `classification`, which define the names listed in `contract`.
"""
