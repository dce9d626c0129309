//! Memory that a peer may read and write while the program runs.
