"""Data and servers of 0.1.0 work with this version."""
