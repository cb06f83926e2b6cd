"""The subcommands: a class each, whose options are its fields and whose help is its docstring."""
