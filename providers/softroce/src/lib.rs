//! Ringmail provider on the software RNIC.
