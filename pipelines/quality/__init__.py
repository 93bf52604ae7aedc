"""Quality of answers: metrics, votes, error kinds."""
