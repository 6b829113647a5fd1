"""What is shipped to a board? The signed bundle, and the delta from the version before."""
