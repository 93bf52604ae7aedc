"""Where things run: the plan of actors and resources, and the Ray session."""
