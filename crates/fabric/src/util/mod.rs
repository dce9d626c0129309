//! Parts that providers share.

mod notify;
mod queue;

pub use notify::Notify;
pub use queue::{Report, Slot, SoftQueue};
