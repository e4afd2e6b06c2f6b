//! Cluster sandbox, faults, a Matrix test client.
