"""HTML reports and pictures for people to look at."""
