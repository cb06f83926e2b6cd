"""The command `doctor` checks that the installation works and that a store of features follows its conventions."""
