"""What runs on a node: plain classes over rows of text; no Ray import here (see `cluster`)."""
