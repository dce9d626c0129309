//! How far the copy is, for whoever watches a terminal. Silent elsewhere.

use std::ffi::OsStr;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// A bar on standard error, if that is a terminal. Clones are of one bar.
#[derive(Clone)]
pub(super) struct Progress {
    bar: ProgressBar,
}

impl Progress {
    pub(super) fn new() -> Self {
        let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr());
        let style =
            "{wide_msg} {bar:24} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {eta}";
        bar.set_style(ProgressStyle::with_template(style).expect("a constant that is right"));
        Self { bar }
    }

    /// A file of that size and name comes next.
    pub(super) fn expect(&self, bytes: u64, name: &OsStr) {
        self.bar.inc_length(bytes);
        self.bar.set_message(name.display().to_string());
    }

    /// So many bytes more are verified.
    pub(super) fn add(&self, bytes: u64) {
        self.bar.inc(bytes);
    }

    /// Bytes verified so far.
    pub(super) fn bytes(&self) -> u64 {
        self.bar.position()
    }

    /// Says something without disturbing the bar.
    pub(super) fn say(&self, text: &str) {
        self.bar.suspend(|| eprintln!("{text}"));
    }

    pub(super) fn finish(&self) {
        self.bar.finish_and_clear();
    }
}
