"""Benchmarks: speed of ranking, bulk runs and the service, and behaviour under faults, outages and overload."""
