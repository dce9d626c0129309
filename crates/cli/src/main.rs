//! The `ringmail` program.

fn main() {}
