"""What resrepro is measured against; a package so that it travels with the wheel."""
