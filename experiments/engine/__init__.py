"""How a study runs: its grid of cells, their order, workers and cost."""
