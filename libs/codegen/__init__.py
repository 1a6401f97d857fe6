"""What `make gen` runs to turn the contract into code."""
