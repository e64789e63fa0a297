//! Allocation of cluster addresses and node ports.
