"""Which units matter? Criteria, the statistics they use, and the allocation among layers."""
