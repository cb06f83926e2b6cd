"""Subcommands that have more to say than fits in `cli`: parse, call a stage or a chain, print."""
