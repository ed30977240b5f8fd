"""What 0.1.0 has written works with this version."""
