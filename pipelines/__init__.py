"""Work flows: bulk runs, the online service, training, evaluation, reports, benchmarks and the command line."""
