"""Placement: the plan of actors and resources, the Ray session, job submission."""
