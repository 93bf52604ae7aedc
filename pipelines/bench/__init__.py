"""How fast ranking is, by itself and beside the original package, and what a strategy's fewer comparisons cost."""
