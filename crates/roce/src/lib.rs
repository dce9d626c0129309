//! RoCEv2 and IB connection management as a sans-I/O protocol engine.
