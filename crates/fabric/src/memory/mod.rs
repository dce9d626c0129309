//! Memory as the API shows it: private, exposed, a peer's, and ranges of it in a work.

mod buf;
mod region;
mod remote;
mod segment;

pub use buf::Buf;
pub(crate) use buf::LocalRegistration;
pub use region::{Access, MemoryRegion};
pub use remote::{RemoteAddr, RemoteRegion};
pub use segment::{Exposed, ExposedSegment, Segment, Segments};
