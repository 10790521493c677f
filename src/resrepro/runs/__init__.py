"""The corridor: run directories, what they say of themselves, and where they come from."""
