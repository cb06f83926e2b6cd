"""Quality measures, and readers of the data sets on which they are computed."""
