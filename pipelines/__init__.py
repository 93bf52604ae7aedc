"""How work flows: one prompt (`blend`), bulk (`batch`), training, evaluation and the command line."""
