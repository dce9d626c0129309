//! A software RDMA NIC in an ordinary process, speaking RoCEv2 over UDP.
