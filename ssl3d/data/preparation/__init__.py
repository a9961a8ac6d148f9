"""From source files to a prepared data set: one case, the collection, its sizes and splits."""
