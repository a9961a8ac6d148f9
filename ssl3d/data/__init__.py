"""From files on disk to batches: layouts, readers, the prepared store, phantoms, the pipeline."""
