//! The local memory of a work: ranges that are gathered from or scattered to, and how a provider reaches them.

use std::ops::Deref;

use mem::Memory;
use smallvec::{SmallVec, smallvec};

use super::{Buf, MemoryRegion};

/// One range of local memory.
#[derive(Debug)]
pub enum Segment {
    /// Private memory, all of its slice.
    Buf(Buf),
    /// A range of exposed memory; made by [`MemoryRegion::slice`].
    Region {
        /// The region.
        region: MemoryRegion,
        /// First byte.
        offset: usize,
        /// Bytes.
        len: usize,
    },
}

impl Segment {
    /// Length in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::Buf(buf) => buf.len(),
            Self::Region { len, .. } => *len,
        }
    }

    /// Whether there are no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The private memory, if it is that.
    #[must_use]
    pub fn into_buf(self) -> Option<Buf> {
        match self {
            Self::Buf(buf) => Some(buf),
            Self::Region { .. } => None,
        }
    }
}

impl From<Buf> for Segment {
    fn from(buf: Buf) -> Self {
        Self::Buf(buf)
    }
}

/// The ranges of one work, in order. Up to two are kept without an allocation.
#[derive(Debug, Default)]
pub struct Segments(SmallVec<[Segment; 2]>);

impl Segments {
    /// No memory: an empty message, or a receive for the notices of writes.
    #[must_use]
    pub fn none() -> Self {
        Self::default()
    }

    /// Bytes in all.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.iter().map(Segment::len).sum()
    }

    /// Whether there are no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The ranges.
    #[must_use]
    pub fn as_slice(&self) -> &[Segment] {
        &self.0
    }

    /// The first range.
    #[must_use]
    pub fn first(&self) -> Option<&Segment> {
        self.0.first()
    }

    /// For providers: the memory behind each range, to be touched while the work is in flight.
    #[must_use]
    pub fn expose(self) -> Exposed {
        Exposed(self.0.into_iter().map(ExposedSegment::new).collect())
    }
}

impl<S: Into<Segment>> From<S> for Segments {
    fn from(segment: S) -> Self {
        Self(smallvec![segment.into()])
    }
}

impl From<Vec<Segment>> for Segments {
    fn from(segments: Vec<Segment>) -> Self {
        Self(segments.into())
    }
}

impl FromIterator<Segment> for Segments {
    fn from_iter<I: IntoIterator<Item = Segment>>(segments: I) -> Self {
        Self(segments.into_iter().collect())
    }
}

impl IntoIterator for Segments {
    type Item = Segment;
    type IntoIter = smallvec::IntoIter<[Segment; 2]>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

/// The local memory of a work in flight, as its provider sees it. [`Exposed::conceal`] makes it segments again.
#[derive(Debug, Default)]
pub struct Exposed(SmallVec<[ExposedSegment; 2]>);

/// One range of a work in flight.
#[derive(Debug)]
pub struct ExposedSegment {
    /// The bytes. A clone of the handle must be gone before [`Exposed::conceal`].
    pub memory: Memory,
    /// First byte of the range.
    pub offset: usize,
    /// Bytes of the range.
    pub len: usize,
    /// The local key of its registration, if it has one.
    pub local_key: Option<u64>,
    origin: Origin,
}

/// What an exposed segment becomes again.
#[derive(Debug)]
enum Origin {
    /// A buffer that no device knows: it was taken apart, and `memory` is its only handle.
    Private,
    /// A buffer that the device has in its table, so that further handles exist.
    Registered(Buf),
    Region(MemoryRegion),
}

impl ExposedSegment {
    fn new(segment: Segment) -> Self {
        match segment {
            Segment::Buf(buf) if buf.local_key().is_none() => {
                let len = buf.len();
                Self {
                    memory: buf.into_memory(),
                    offset: 0,
                    len,
                    local_key: None,
                    origin: Origin::Private,
                }
            }
            Segment::Buf(buf) => Self {
                // SAFETY: the buffer is kept here, where nobody can name its slice, until `conceal` drops this handle. The
                // device's own handle touches the bytes only meanwhile: sentence one of the provider contract.
                memory: unsafe { buf.bytes().share() },
                offset: 0,
                len: buf.len(),
                local_key: buf.local_key(),
                origin: Origin::Registered(buf),
            },
            Segment::Region {
                region,
                offset,
                len,
            } => Self {
                memory: region.memory().clone(),
                offset,
                len,
                local_key: Some(region.local_key()),
                origin: Origin::Region(region),
            },
        }
    }

    /// Whether the range belongs to a region that has been revoked: hardware answers a local protection error.
    #[must_use]
    pub fn is_revoked(&self) -> bool {
        matches!(&self.origin, Origin::Region(region) if region.is_revoked())
    }

    fn conceal(self) -> Segment {
        match self.origin {
            Origin::Private => {
                let mut bytes = mem::Buf::try_from(self.memory)
                    .expect("the provider has dropped its handles to work that has ended");
                bytes.set_len(self.len);
                Segment::Buf(bytes.into())
            }
            Origin::Registered(buf) => Segment::Buf(buf),
            Origin::Region(region) => Segment::Region {
                region,
                offset: self.offset,
                len: self.len,
            },
        }
    }
}

impl Exposed {
    /// Ends the provider's access: the segments as they were posted.
    ///
    /// # Panics
    /// If a clone of the handle to private memory is left: its owner could be raced.
    #[must_use]
    pub fn conceal(self) -> Segments {
        Segments(self.0.into_iter().map(ExposedSegment::conceal).collect())
    }

    /// Bytes in all.
    #[must_use]
    pub fn total(&self) -> usize {
        self.0.iter().map(|segment| segment.len).sum()
    }
}

impl Deref for Exposed {
    type Target = [ExposedSegment];

    fn deref(&self) -> &[ExposedSegment] {
        &self.0
    }
}
