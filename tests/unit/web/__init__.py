"""Tests of the page: what it shows, and how it is served."""
