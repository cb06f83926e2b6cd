"""The only place that imports pycolmap: features, database, mapping, models. Tested against the real wheel."""
