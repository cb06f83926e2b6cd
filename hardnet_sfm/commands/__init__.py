"""Subcommands that are kept apart from `cli.py`, and what all of them share."""
