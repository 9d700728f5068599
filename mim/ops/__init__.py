"""Operations that several parts share: patches, positions, attention kernels, seeds."""
