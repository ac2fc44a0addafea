"""Command line and report: parse, call one function, write."""
