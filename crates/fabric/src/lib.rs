//! The RDMA API that programs use, and the contract that a provider implements.
