//! Requests and replies.
//!
//! ```text
//! kind (1)  number (4)  fields of the kind
//! ```

use std::fmt;

use fabric::RemoteRegion;

use super::fields::{Fields, put_string};
use super::{BLOCK_RANGE, MAX_CHECKSUMS, MAX_PATH, MAX_RUNS, Malformed, Metadata};

/// What a client asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Request {
    /// What is at a path? Symbolic links are followed.
    Stat {
        /// Absolute, in the server's file system.
        path: Vec<u8>,
    },
    /// Expose a file, or the listing of a directory, to this connection's reads.
    Open {
        /// Absolute, in the server's file system.
        path: Vec<u8>,
    },
    /// The CRC32C of consecutive blocks of an opened file, as it is now.
    Checksums {
        /// From [`Opened`].
        handle: u32,
        /// Bytes of a block (the file's last one is shorter); within [`BLOCK_RANGE`].
        block_len: u32,
        /// Number of the first block.
        first: u64,
        /// Blocks, 1 to [`MAX_CHECKSUMS`].
        count: u32,
    },
    /// Which blocks of an opened file have data, and which are holes.
    Layout {
        /// From [`Opened`].
        handle: u32,
        /// Bytes of a block, as of [`Request::Checksums`].
        block_len: u32,
        /// Number of the first block.
        first: u64,
    },
    /// End what [`Request::Open`] began; answers the metadata as it is now.
    Close {
        /// From [`Opened`].
        handle: u32,
    },
    /// What the server's device has counted.
    Counters,
    /// Nothing: shows that the client is alive.
    Ping,
}

/// What the server answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Reply {
    /// To [`Request::Stat`] and [`Request::Close`].
    Metadata(Metadata),
    /// To [`Request::Open`].
    Opened(Opened),
    /// To [`Request::Checksums`]: one for each block.
    Checksums(Vec<u32>),
    /// To [`Request::Layout`].
    Layout(Layout),
    /// To [`Request::Counters`].
    Counters(Vec<Counter>),
    /// To [`Request::Ping`].
    Pong,
    /// To any: it could not be done.
    Failed(Failure),
}

/// A file that can be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Opened {
    /// Names it in later requests.
    pub(crate) handle: u32,
    /// What it is; `size` is the region's length.
    pub(crate) metadata: Metadata,
    /// Where its bytes are; of no meaning if there are none.
    pub(crate) region: RemoteRegion,
    /// Whether it may have holes, so that asking for its layout is worth it.
    pub(crate) is_sparse: bool,
}

/// Which blocks have data, as far as one reply tells. A block without data holds zeros only.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Layout {
    /// The first block that it says nothing of, more than was asked for.
    pub(crate) end: u64,
    /// Blocks that have data, in order, at most [`MAX_RUNS`] runs.
    pub(crate) data: Vec<Run>,
}

/// Consecutive blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Run {
    /// The first.
    pub(crate) first: u64,
    /// How many, at least one.
    pub(crate) count: u64,
}

/// Something that a device counted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Counter {
    /// What.
    pub(crate) name: String,
    /// How often.
    pub(crate) value: u64,
}

/// Why a request was not served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    /// For the program.
    pub(crate) kind: FailureKind,
    /// For humans: a sentence fragment.
    pub(crate) message: String,
}

/// What a client may do about a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FailureKind {
    /// There is no such file.
    NotFound,
    /// The server, or its user, may not read it.
    Denied,
    /// It is not in the served directories.
    Outside,
    /// It is neither a regular file nor a directory.
    Special,
    /// It changed while it was served.
    Changed,
    /// Too much was asked for at once.
    Limit,
    /// Anything else.
    Other,
}

impl Request {
    /// Appends the message.
    pub(crate) fn write(&self, number: u32, into: &mut Vec<u8>) {
        let mut start = |kind: u8| {
            into.push(kind);
            into.extend(number.to_be_bytes());
        };
        match self {
            Self::Stat { path } => {
                start(STAT);
                put_string(into, path);
            }
            Self::Open { path } => {
                start(OPEN);
                put_string(into, path);
            }
            Self::Checksums {
                handle,
                block_len,
                first,
                count,
            } => {
                start(CHECKSUMS);
                into.extend(handle.to_be_bytes());
                into.extend(block_len.to_be_bytes());
                into.extend(first.to_be_bytes());
                into.extend(count.to_be_bytes());
            }
            Self::Layout {
                handle,
                block_len,
                first,
            } => {
                start(LAYOUT);
                into.extend(handle.to_be_bytes());
                into.extend(block_len.to_be_bytes());
                into.extend(first.to_be_bytes());
            }
            Self::Close { handle } => {
                start(CLOSE);
                into.extend(handle.to_be_bytes());
            }
            Self::Counters => start(COUNTERS),
            Self::Ping => start(PING),
        }
    }

    /// Reads a message; answers its number too.
    ///
    /// # Errors
    /// [`Malformed`].
    pub(crate) fn read(message: &[u8]) -> Result<(u32, Self), Malformed> {
        let mut fields = Fields(message);
        let kind = fields.u8()?;
        let number = fields.u32()?;
        let request = match kind {
            STAT => Self::Stat {
                path: path(&mut fields)?,
            },
            OPEN => Self::Open {
                path: path(&mut fields)?,
            },
            CHECKSUMS => {
                let handle = fields.u32()?;
                let block_len = fields.u32()?;
                let first = fields.u64()?;
                let count = fields.u32()?;
                if !BLOCK_RANGE.contains(&block_len) || !(1..=MAX_CHECKSUMS).contains(&count) {
                    return Err(Malformed("a checksum request out of range"));
                }
                Self::Checksums {
                    handle,
                    block_len,
                    first,
                    count,
                }
            }
            LAYOUT => {
                let handle = fields.u32()?;
                let block_len = fields.u32()?;
                let first = fields.u64()?;
                if !BLOCK_RANGE.contains(&block_len) {
                    return Err(Malformed("a layout request out of range"));
                }
                Self::Layout {
                    handle,
                    block_len,
                    first,
                }
            }
            CLOSE => Self::Close {
                handle: fields.u32()?,
            },
            COUNTERS => Self::Counters,
            PING => Self::Ping,
            _ => return Err(Malformed("an unknown request")),
        };
        fields.end()?;
        Ok((number, request))
    }
}

impl Reply {
    /// Appends the message.
    pub(crate) fn write(&self, number: u32, into: &mut Vec<u8>) {
        let mut start = |kind: u8| {
            into.push(kind);
            into.extend(number.to_be_bytes());
        };
        match self {
            Self::Metadata(metadata) => {
                start(METADATA);
                metadata.write(into);
            }
            Self::Opened(opened) => {
                start(OPENED);
                into.extend(opened.handle.to_be_bytes());
                opened.metadata.write(into);
                into.extend(opened.region.to_bytes());
                into.push(opened.is_sparse.into());
            }
            Self::Checksums(checksums) => {
                start(CHECKSUM_LIST);
                into.extend((checksums.len() as u32).to_be_bytes());
                into.extend(checksums.iter().flat_map(|checksum| checksum.to_be_bytes()));
            }
            Self::Layout(layout) => {
                start(RUN_LIST);
                into.extend(layout.end.to_be_bytes());
                into.extend((layout.data.len() as u16).to_be_bytes());
                for run in &layout.data {
                    into.extend(run.first.to_be_bytes());
                    into.extend(run.count.to_be_bytes());
                }
            }
            Self::Counters(counters) => {
                start(COUNTER_LIST);
                let counters = &counters[..counters.len().min(MAX_COUNTERS)];
                into.push(counters.len() as u8);
                for counter in counters {
                    put_string(into, cut(&counter.name, MAX_COUNTER_NAME).as_bytes());
                    into.extend(counter.value.to_be_bytes());
                }
            }
            Self::Pong => start(PONG),
            Self::Failed(failure) => {
                start(FAILED);
                into.push(failure.kind.code());
                put_string(into, cut(&failure.message, MAX_REASON).as_bytes());
            }
        }
    }

    /// Reads a message; answers its number too.
    ///
    /// # Errors
    /// [`Malformed`].
    pub(crate) fn read(message: &[u8]) -> Result<(u32, Self), Malformed> {
        let mut fields = Fields(message);
        let kind = fields.u8()?;
        let number = fields.u32()?;
        let reply = match kind {
            METADATA => Self::Metadata(Metadata::read(&mut fields)?),
            OPENED => Self::Opened(opened(&mut fields)?),
            CHECKSUM_LIST => {
                let count = fields.u32()?;
                if count > MAX_CHECKSUMS {
                    return Err(Malformed("too many checksums"));
                }
                Self::Checksums((0..count).map(|_| fields.u32()).collect::<Result<_, _>>()?)
            }
            RUN_LIST => Self::Layout(layout(&mut fields)?),
            COUNTER_LIST => {
                let count = fields.u8()?;
                let counters = (0..count).map(|_| counter(&mut fields));
                Self::Counters(counters.collect::<Result<_, _>>()?)
            }
            PONG => Self::Pong,
            FAILED => Self::Failed(Failure {
                kind: FailureKind::from_code(fields.u8()?),
                message: text(fields.string(MAX_REASON)?),
            }),
            _ => return Err(Malformed("an unknown reply")),
        };
        fields.end()?;
        Ok((number, reply))
    }
}

impl Failure {
    pub(crate) fn new(kind: FailureKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

impl FailureKind {
    const fn code(self) -> u8 {
        match self {
            Self::Other => 0,
            Self::NotFound => 1,
            Self::Denied => 2,
            Self::Outside => 3,
            Self::Special => 4,
            Self::Changed => 5,
            Self::Limit => 6,
        }
    }

    const fn from_code(code: u8) -> Self {
        match code {
            1 => Self::NotFound,
            2 => Self::Denied,
            3 => Self::Outside,
            4 => Self::Special,
            5 => Self::Changed,
            6 => Self::Limit,
            _ => Self::Other,
        }
    }
}

fn path(fields: &mut Fields<'_>) -> Result<Vec<u8>, Malformed> {
    fields.string(MAX_PATH).map(<[u8]>::to_vec)
}

fn opened(fields: &mut Fields<'_>) -> Result<Opened, Malformed> {
    let handle = fields.u32()?;
    let metadata = Metadata::read(fields)?;
    let region = RemoteRegion::from_bytes(fields.bytes(RemoteRegion::WIRE_LEN)?)
        .expect("all its bytes are there");
    let is_sparse = fields.u8()? != 0;
    Ok(Opened {
        handle,
        metadata,
        region,
        is_sparse,
    })
}

fn layout(fields: &mut Fields<'_>) -> Result<Layout, Malformed> {
    let end = fields.u64()?;
    let count = usize::from(fields.u16()?);
    if count > MAX_RUNS {
        return Err(Malformed("too many runs of data"));
    }
    let mut data = Vec::with_capacity(count);
    let mut free = 0;
    for _ in 0..count {
        let (first, count) = (fields.u64()?, fields.u64()?);
        let next = first.checked_add(count);
        let Some(next) = next.filter(|&next| first >= free && count > 0 && next <= end) else {
            return Err(Malformed("runs of data that are none"));
        };
        free = next;
        data.push(Run { first, count });
    }
    Ok(Layout { end, data })
}

fn counter(fields: &mut Fields<'_>) -> Result<Counter, Malformed> {
    Ok(Counter {
        name: text(fields.string(MAX_COUNTER_NAME)?),
        value: fields.u64()?,
    })
}

/// What a peer says is shown to humans: nothing that moves their cursor.
fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes)
        .chars()
        .map(|character| {
            if character.is_control() {
                '\u{fffd}'
            } else {
                character
            }
        })
        .collect()
}

/// The longest start of `text` of at most `max` bytes.
fn cut(text: &str, max: usize) -> &str {
    let end = (0..=max.min(text.len()))
        .rev()
        .find(|&end| text.is_char_boundary(end));
    &text[..end.unwrap_or(0)]
}

const MAX_COUNTERS: usize = 64;
const MAX_COUNTER_NAME: usize = 64;
const MAX_REASON: usize = 1024;

const STAT: u8 = 1;
const OPEN: u8 = 2;
const CHECKSUMS: u8 = 3;
const CLOSE: u8 = 4;
const COUNTERS: u8 = 5;
const PING: u8 = 6;
const LAYOUT: u8 = 7;
const METADATA: u8 = 129;
const OPENED: u8 = 130;
const CHECKSUM_LIST: u8 = 131;
const COUNTER_LIST: u8 = 132;
const PONG: u8 = 133;
const RUN_LIST: u8 = 134;
const FAILED: u8 = 255;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::protocol::{Kind, MAX_MESSAGE, Time};

    fn metadata() -> Metadata {
        Metadata {
            kind: Kind::File,
            size: 1 << 40,
            mode: 0o755,
            modified: Time {
                seconds: 1_700_000_000,
                nanoseconds: 1,
            },
            device: 3,
            inode: 4,
        }
    }

    fn requests() -> Vec<Request> {
        vec![
            Request::Stat {
                path: vec![b'/'; MAX_PATH],
            },
            Request::Open {
                path: b"/srv/file".to_vec(),
            },
            Request::Checksums {
                handle: 1,
                block_len: 4096,
                first: 7,
                count: MAX_CHECKSUMS,
            },
            Request::Layout {
                handle: 2,
                block_len: 1 << 20,
                first: 1 << 33,
            },
            Request::Close { handle: 9 },
            Request::Counters,
            Request::Ping,
        ]
    }

    fn replies() -> Vec<Reply> {
        let region = RemoteRegion {
            addr: 1,
            len: 2,
            key: 3,
        };
        vec![
            Reply::Metadata(metadata()),
            Reply::Opened(Opened {
                handle: 5,
                metadata: metadata(),
                region,
                is_sparse: true,
            }),
            Reply::Checksums(vec![7; MAX_CHECKSUMS as usize]),
            Reply::Layout(Layout {
                end: 1 << 40,
                data: (0..MAX_RUNS as u64)
                    .map(|number| Run {
                        first: 3 * number,
                        count: 2,
                    })
                    .collect(),
            }),
            Reply::Counters(vec![
                Counter {
                    name: "n".repeat(MAX_COUNTER_NAME),
                    value: u64::MAX
                };
                MAX_COUNTERS
            ]),
            Reply::Pong,
            Reply::Failed(Failure::new(FailureKind::Outside, "x".repeat(MAX_REASON))),
        ]
    }

    #[test]
    fn every_message_is_read_as_written_and_fits() {
        for (number, request) in requests().into_iter().enumerate() {
            let mut bytes = Vec::new();
            request.write(number as u32, &mut bytes);
            assert!(bytes.len() <= MAX_MESSAGE);
            assert_eq!(Request::read(&bytes), Ok((number as u32, request)));
        }
        for (number, reply) in replies().into_iter().enumerate() {
            let mut bytes = Vec::new();
            reply.write(number as u32, &mut bytes);
            assert!(bytes.len() <= MAX_MESSAGE, "{reply:?} is too long");
            assert_eq!(Reply::read(&bytes), Ok((number as u32, reply)));
        }
    }

    #[test]
    fn a_message_of_any_other_length_is_refused() {
        for request in requests() {
            let mut bytes = Vec::new();
            request.write(1, &mut bytes);
            for len in 0..bytes.len() {
                assert!(
                    Request::read(&bytes[..len]).is_err(),
                    "{request:?} cut at {len}"
                );
            }
            bytes.push(0);
            assert!(Request::read(&bytes).is_err());
        }
        for reply in replies() {
            let mut bytes = Vec::new();
            reply.write(1, &mut bytes);
            for len in 0..bytes.len() {
                assert!(
                    Reply::read(&bytes[..len]).is_err(),
                    "{reply:?} cut at {len}"
                );
            }
            bytes.push(0);
            assert!(Reply::read(&bytes).is_err());
        }
    }

    #[test]
    fn runs_that_overlap_or_lead_beyond_their_end_are_refused() {
        for runs in [
            &[(0, 0)][..],
            &[(0, 2), (1, 2)],
            &[(9, 2)],
            &[(u64::MAX, 2)],
        ] {
            let run = |&(first, count)| Run { first, count };
            let data = runs.iter().map(run).collect();
            let mut bytes = Vec::new();
            Reply::Layout(Layout { end: 10, data }).write(1, &mut bytes);
            assert!(Reply::read(&bytes).is_err(), "{runs:?} were accepted");
        }
    }

    #[test]
    fn a_reason_cannot_move_the_cursor_and_is_cut_between_characters() {
        let failure = Failure::new(FailureKind::Other, format!("\x1b[2J{}", "é".repeat(600)));
        let mut bytes = Vec::new();
        Reply::Failed(failure).write(1, &mut bytes);
        let Ok((1, Reply::Failed(read))) = Reply::read(&bytes) else {
            panic!("the reply cannot be read");
        };
        assert!(!read.message.contains('\x1b'));
        assert!(read.message.ends_with('é'));
    }

    proptest! {
        #[test]
        fn no_bytes_make_reading_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Request::read(&bytes);
            let _ = Reply::read(&bytes);
        }

        #[test]
        fn no_damage_makes_reading_panic(which in 0usize..7, at in 0usize..9000, value: u8) {
            let mut bytes = Vec::new();
            requests()[which].write(1, &mut bytes);
            let len = bytes.len();
            bytes[at % len] = value;
            let _ = Request::read(&bytes);
            bytes.clear();
            replies()[which].write(1, &mut bytes);
            let len = bytes.len();
            bytes[at % len] = value;
            let _ = Reply::read(&bytes);
        }
    }
}
