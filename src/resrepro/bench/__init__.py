"""Training's speed beside the machine's limits and a conventional pipeline, and proofs on a GPU."""
