"""The command `doctor`: whether what is installed works, and whether a store of features is what it should be."""
