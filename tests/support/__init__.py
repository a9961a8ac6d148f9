"""Data sets, configs and collections that several tests share."""
