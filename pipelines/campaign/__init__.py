"""Campaigns: people compare the answers of a run, blind, on a page of their own; results, exports, imports."""
