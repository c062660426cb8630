"""Other attention kernels. Each module translates this package's words into its library's, and knows nothing else."""
