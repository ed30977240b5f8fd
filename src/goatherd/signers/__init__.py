"""Keys that are used where they are and never leave: none yet, local keys are `goatherd.crypto.PrivateKey`."""
