"""Cloud-native key management for GoatDB server clusters."""
