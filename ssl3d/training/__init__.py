"""The loop that trains any task, and what it needs: step, checkpoints, transfer, sharding, logs."""
