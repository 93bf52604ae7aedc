"""Training data from published instruction data sets: `blend dataset mixinstruct`."""
