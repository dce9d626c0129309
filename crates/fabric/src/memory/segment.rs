//! The local memory of a work: ranges that are gathered from or scattered to, and how a provider reaches them.

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
    #[inline]
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
    #[inline]
    #[must_use]
    pub fn len(&self) -> usize {
        match self.0.as_slice() {
            [segment] => segment.len(),
            segments => segments.iter().map(Segment::len).sum(),
        }
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

    /// For providers: the memory behind each range, to be touched while the work is in flight. Nothing is moved.
    #[inline]
    #[must_use]
    pub fn expose(self) -> Exposed {
        Exposed(self)
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
pub struct Exposed(Segments);

/// One range of a work in flight.
#[derive(Debug, Clone, Copy)]
pub struct ExposedSegment<'a> {
    /// The bytes. A clone of the handle must be gone before [`Exposed::conceal`].
    pub memory: &'a Memory,
    /// First byte of the range.
    pub offset: usize,
    /// Bytes of the range.
    pub len: usize,
    segment: &'a Segment,
}

impl<'a> ExposedSegment<'a> {
    #[inline]
    fn new(segment: &'a Segment) -> Self {
        let (memory, offset, len) = match segment {
            Segment::Buf(buf) => {
                // SAFETY: the buffer is part of a work in flight, where nobody can name its slice until `conceal`, which
                // refuses to give it back while a clone of the handle is left. The device's own handle to a registered
                // buffer touches the bytes only meanwhile: sentence one of the provider contract.
                (unsafe { buf.bytes().exposed() }, 0, buf.len())
            }
            Segment::Region {
                region,
                offset,
                len,
            } => (region.memory(), *offset, *len),
        };
        Self {
            memory,
            offset,
            len,
            segment,
        }
    }

    /// The local key of its registration, if it has one.
    #[must_use]
    pub fn local_key(&self) -> Option<u64> {
        match self.segment {
            Segment::Buf(buf) => buf.local_key(),
            Segment::Region { region, .. } => Some(region.local_key()),
        }
    }

    /// Whether the range belongs to a region that has been revoked: hardware answers a local protection error.
    #[inline]
    #[must_use]
    pub fn is_revoked(&self) -> bool {
        matches!(self.segment, Segment::Region { region, .. } if region.is_revoked())
    }
}

impl Exposed {
    /// Ends the provider's access: the segments as they were posted.
    ///
    /// # Panics
    /// If a clone of the handle to private memory is left: its owner could be raced.
    #[inline]
    #[must_use]
    pub fn conceal(self) -> Segments {
        for segment in &self.0.0 {
            if let Segment::Buf(buf) = segment {
                // Of a registered buffer the device keeps a handle.
                assert!(
                    buf.is_registered() || buf.bytes().is_alone(),
                    "the provider has dropped its handles to work that has ended"
                );
            }
        }
        self.0
    }

    /// The ranges.
    #[inline]
    pub fn iter(&self) -> impl Iterator<Item = ExposedSegment<'_>> {
        self.0.0.iter().map(ExposedSegment::new)
    }

    /// The range, if there is one and no other.
    #[inline]
    #[must_use]
    pub fn single(&self) -> Option<ExposedSegment<'_>> {
        match self.0.0.as_slice() {
            [segment] => Some(ExposedSegment::new(segment)),
            _ => None,
        }
    }

    /// Bytes in all.
    #[inline]
    #[must_use]
    pub fn total(&self) -> usize {
        self.0.len()
    }
}
