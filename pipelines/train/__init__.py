"""Training of rankers and fusers: `blend train ranker CONFIG` and `blend train fuser CONFIG`."""
