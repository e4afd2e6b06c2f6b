//! Implements the store on CQL: ScyllaDB, or Apache Cassandra with lightweight transactions.
