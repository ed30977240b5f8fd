"""What the command line and Python programs call: one module for each operation on a cluster, store or directory.

Operations take opened objects (a provider, node clients, a policy) and return data. They read no configuration and
print nothing; `goatherd.cli` does that.
"""
