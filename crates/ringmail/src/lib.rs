//! RDMA on every machine.
