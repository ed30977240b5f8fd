"""The signer contract over real tokens and servers, an emulator, and fakes."""
