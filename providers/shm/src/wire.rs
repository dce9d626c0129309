//! What two processes tell each other over the socket of a connection, one message a packet.
//!
//! ```text
//! | 'R' 'S' | version | kind | fields, little-endian |
//! ```
//!
//! Both run on one machine as one user. Still, whatever arrives is parsed into a message or refused.

use crate::ring::Geometry;

/// A message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Message {
    /// Asks for a connection. With it come the ring, the table of exported regions, and the bell with its page.
    Request {
        /// Sizes of the ring.
        geometry: Geometry,
        /// Who asks.
        hello: Hello,
        /// What the program says.
        private_data: Vec<u8>,
    },
    /// Accepts. With it come the table of exported regions, and the bell with its page.
    Reply {
        /// Who accepts.
        hello: Hello,
        /// What the program says.
        private_data: Vec<u8>,
    },
    /// Refuses.
    Reject {
        /// What the program says.
        private_data: Vec<u8>,
        /// Whether a program was there to say it.
        heard: bool,
    },
    /// The reply has arrived.
    Ready,
    /// Asks what a key is.
    Want {
        /// The key.
        key: u64,
    },
    /// Answers [`Message::Want`]; its file may come with it.
    Give {
        /// The key.
        key: u64,
        /// What it is, for [`crate::region::Imports::learn`].
        answer: Vec<u8>,
    },
    /// The connection ends in order.
    Bye,
}

/// A domain, as it introduces itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Hello {
    /// Random: two domains of one process differ.
    pub(crate) node: [u8; 16],
    /// Of its table of regions.
    pub(crate) greeting: [u8; GREETING],
}

impl Message {
    /// The longest, and a byte more to notice those that are longer.
    pub(crate) const ROOM: usize = 512;

    /// As it travels.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = vec![b'R', b'S', VERSION, 0];
        let hello = |bytes: &mut Vec<u8>, hello: &Hello| {
            bytes.extend(hello.node);
            bytes.extend(hello.greeting);
        };
        bytes[3] = match self {
            Self::Request {
                geometry,
                hello: who,
                private_data,
            } => {
                bytes.extend(geometry.cells.to_le_bytes());
                bytes.extend(geometry.data.to_le_bytes());
                hello(&mut bytes, who);
                bytes.extend(private_data);
                1
            }
            Self::Reply {
                hello: who,
                private_data,
            } => {
                hello(&mut bytes, who);
                bytes.extend(private_data);
                2
            }
            Self::Reject {
                private_data,
                heard,
            } => {
                bytes.push(u8::from(*heard));
                bytes.extend(private_data);
                3
            }
            Self::Ready => 4,
            Self::Want { key } => {
                bytes.extend(key.to_le_bytes());
                5
            }
            Self::Give { key, answer } => {
                bytes.extend(key.to_le_bytes());
                bytes.extend(answer);
                6
            }
            Self::Bye => 7,
        };
        bytes
    }

    /// Reads one; `None` if it is none.
    pub(crate) fn parse(bytes: &[u8]) -> Option<Self> {
        let (&[b'R', b'S', VERSION, kind], mut rest) = bytes.split_first_chunk()? else {
            return None;
        };
        let rest = &mut rest;
        let message = match kind {
            1 => Self::Request {
                geometry: Geometry {
                    cells: u32::from_le_bytes(take(rest)?),
                    data: u32::from_le_bytes(take(rest)?),
                },
                hello: Hello::take(rest)?,
                private_data: all(rest, MAX_PRIVATE_DATA)?,
            },
            2 => Self::Reply {
                hello: Hello::take(rest)?,
                private_data: all(rest, MAX_PRIVATE_DATA)?,
            },
            3 => Self::Reject {
                heard: take::<1>(rest)? != [0],
                private_data: all(rest, MAX_PRIVATE_DATA)?,
            },
            4 => Self::Ready,
            5 => Self::Want {
                key: u64::from_le_bytes(take(rest)?),
            },
            6 => Self::Give {
                key: u64::from_le_bytes(take(rest)?),
                answer: all(rest, LONGEST_ANSWER)?,
            },
            7 => Self::Bye,
            _ => return None,
        };
        rest.is_empty().then_some(message)
    }
}

impl Hello {
    fn take(from: &mut &[u8]) -> Option<Self> {
        Some(Self {
            node: take(from)?,
            greeting: take(from)?,
        })
    }
}

fn take<const N: usize>(from: &mut &[u8]) -> Option<[u8; N]> {
    let (taken, rest) = from.split_first_chunk::<N>()?;
    *from = rest;
    Some(*taken)
}

fn all(from: &mut &[u8], most: usize) -> Option<Vec<u8>> {
    let all = std::mem::take(from).to_vec();
    (all.len() <= most).then_some(all)
}

/// Most bytes that a program says with a request or an answer.
pub(crate) const MAX_PRIVATE_DATA: usize = 192;
/// Bytes of what a table of regions says of itself, and at most of one region.
pub(crate) const GREETING: usize = 16;
const LONGEST_ANSWER: usize = 256;
const VERSION: u8 = 1;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn hello() -> Hello {
        Hello {
            node: [7; 16],
            greeting: [9; GREETING],
        }
    }

    #[test]
    fn messages_arrive_as_they_were_sent() {
        let all = [
            Message::Request {
                geometry: Geometry {
                    cells: 64,
                    data: 4096,
                },
                hello: hello(),
                private_data: vec![1; MAX_PRIVATE_DATA],
            },
            Message::Reply {
                hello: hello(),
                private_data: vec![],
            },
            Message::Reject {
                private_data: vec![3],
                heard: true,
            },
            Message::Ready,
            Message::Want { key: 5 },
            Message::Give {
                key: 5,
                answer: vec![8; 64],
            },
            Message::Bye,
        ];
        for message in all {
            let bytes = message.to_bytes();
            assert!(bytes.len() < Message::ROOM);
            assert_eq!(Message::parse(&bytes), Some(message));
        }
    }

    #[test]
    fn too_much_private_data_is_no_message() {
        let message = Message::Reply {
            hello: hello(),
            private_data: vec![0; MAX_PRIVATE_DATA + 1],
        };
        assert_eq!(Message::parse(&message.to_bytes()), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_message_or_none(kind in 0_u8..9, rest in proptest::collection::vec(any::<u8>(), 0..400)) {
            let mut bytes = vec![b'R', b'S', VERSION, kind];
            bytes.extend(rest);
            if let Some(message) = Message::parse(&bytes) {
                prop_assert_eq!(Message::parse(&message.to_bytes()), Some(message));
            }
        }
    }
}
