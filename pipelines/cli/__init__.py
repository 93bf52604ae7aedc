"""Command line: the `blend` command and its options."""
