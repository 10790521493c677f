"""From words on the command line to a checked configuration that may run nothing."""
