"""`blend report`, and what a run cost."""
