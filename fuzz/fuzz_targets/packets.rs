//! See `ringmail_roce::sim::fuzz::packets`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| ringmail_roce::sim::fuzz::packets(bytes));
