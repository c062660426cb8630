"""The benchmark, `python -m onewave bench`: named workloads, other attention kernels beside this one, one clock for all."""
