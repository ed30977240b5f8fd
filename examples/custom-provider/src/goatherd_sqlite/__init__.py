"""A Goatherd provider that keeps secrets in a SQLite database: an example of a provider in a package of its own."""
