"""Classes that run on a node, over rows of text. No Ray import here (see `cluster`)."""
