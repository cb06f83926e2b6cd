"""What lies on disk, one file per format: its layout, checks and crash safety."""
