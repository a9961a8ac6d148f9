"""A trained network at work: predictions, their scores, and linear probes of frozen features."""
