"""Many runs: studies, sweeps and what is constructed from them."""
