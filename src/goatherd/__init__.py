"""Cloud-native key management for GoatDB server clusters."""

__version__ = "0.1.0"
