"""Bulk runs: input blocks, stages on Ray Data, checkpoints, output, progress, manifest."""
