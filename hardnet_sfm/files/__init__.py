"""The files on disk. Each module handles one format: its layout, its checks and its crash safety."""
