"""Measures and the data sets they are taken on."""
