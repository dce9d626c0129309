//! Everything a developer of Ringmail repeats.

fn main() {}
