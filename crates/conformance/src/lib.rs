//! The test suite that every Ringmail provider passes.
