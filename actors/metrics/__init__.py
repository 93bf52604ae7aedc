"""Models behind metrics: what reads a reference and a text and gives a number.

A class here is constructed with the settings of its metric (`configs.metrics.MetricModel`) and has one method,
`scores(references, texts)`: one number for each pair. Forwards are batched by length; the score of a pair does not
depend on the others beyond rounding.
"""
