//! Receives that wait for messages: the ring behind receive queues and shared receive queues.
//!
//! Any thread posts; the core takes, in posting order. Rings are sized by the longest scatter list that their creator
//! asked for, so that the common one-piece receive costs 40 bytes rather than 300.

use crossbeam_queue::ArrayQueue;
use roce::verbs::{MAX_SGE, RecvWork, Sge, SgeList};

/// A bounded queue of receives.
#[derive(Debug)]
pub(crate) enum RecvQueue {
    /// Lists of one piece.
    One(ArrayQueue<Compact<1>>),
    /// Lists of up to four.
    Four(ArrayQueue<Compact<4>>),
    /// Any list.
    Any(ArrayQueue<Compact<MAX_SGE>>),
}

/// A receive with room for `N` pieces.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Compact<const N: usize> {
    wr_id: u64,
    len: u8,
    pieces: [Sge; N],
}

/// Why a receive was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refused {
    /// As many receives wait as the queue holds.
    Full,
    /// The list is longer than the queue was made for.
    TooManyPieces,
}

impl RecvQueue {
    /// A queue of `depth` receives (at least one) of up to `max_sge` pieces.
    pub(crate) fn new(depth: usize, max_sge: usize) -> Self {
        let depth = depth.max(1);
        match max_sge {
            0..=1 => Self::One(ArrayQueue::new(depth)),
            2..=4 => Self::Four(ArrayQueue::new(depth)),
            _ => Self::Any(ArrayQueue::new(depth)),
        }
    }

    /// Appends a receive.
    pub(crate) fn push(&self, work: &RecvWork) -> Result<(), Refused> {
        fn into<const N: usize>(
            queue: &ArrayQueue<Compact<N>>,
            work: &RecvWork,
        ) -> Result<(), Refused> {
            let from = work.sges.as_slice();
            let mut pieces = [Sge::default(); N];
            pieces
                .get_mut(..from.len())
                .ok_or(Refused::TooManyPieces)?
                .copy_from_slice(from);
            let compact = Compact {
                wr_id: work.wr_id,
                len: from.len() as u8,
                pieces,
            };
            queue.push(compact).map_err(|_| Refused::Full)
        }
        match self {
            Self::One(queue) => into(queue, work),
            Self::Four(queue) => into(queue, work),
            Self::Any(queue) => into(queue, work),
        }
    }

    /// Takes the receive posted first.
    pub(crate) fn pop(&self) -> Option<RecvWork> {
        fn from<const N: usize>(queue: &ArrayQueue<Compact<N>>) -> Option<RecvWork> {
            let compact = queue.pop()?;
            let sges = SgeList::new(&compact.pieces[..usize::from(compact.len)])
                .expect("came out of a list");
            Some(RecvWork {
                wr_id: compact.wr_id,
                sges,
            })
        }
        match self {
            Self::One(queue) => from(queue),
            Self::Four(queue) => from(queue),
            Self::Any(queue) => from(queue),
        }
    }

    /// How many receives wait.
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::One(queue) => queue.len(),
            Self::Four(queue) => queue.len(),
            Self::Any(queue) => queue.len(),
        }
    }
}

#[cfg(test)]
mod tests {
    use roce::wire::Key;

    use super::*;

    fn work(wr_id: u64, pieces: usize) -> RecvWork {
        let sges: Vec<Sge> = (0..pieces)
            .map(|n| Sge {
                addr: n as u64,
                length: 1,
                lkey: Key(wr_id as u32),
            })
            .collect();
        RecvWork {
            wr_id,
            sges: SgeList::new(&sges).unwrap(),
        }
    }

    #[test]
    fn receives_come_out_as_they_went_in() {
        for max_sge in [0, 1, 2, 4, 5, MAX_SGE] {
            let queue = RecvQueue::new(3, max_sge);
            for wr_id in 0..3 {
                queue.push(&work(wr_id, max_sge)).unwrap();
            }
            assert_eq!(queue.push(&work(9, max_sge)), Err(Refused::Full));
            assert_eq!(queue.len(), 3);
            for wr_id in 0..3 {
                let out = queue.pop().unwrap();
                assert_eq!(out.wr_id, wr_id);
                assert_eq!(out.sges.as_slice(), work(wr_id, max_sge).sges.as_slice());
            }
            assert!(queue.pop().is_none());
        }
    }

    #[test]
    fn a_list_longer_than_asked_for_is_refused() {
        assert_eq!(
            RecvQueue::new(1, 1).push(&work(1, 2)),
            Err(Refused::TooManyPieces)
        );
        assert_eq!(
            RecvQueue::new(1, 4).push(&work(1, 5)),
            Err(Refused::TooManyPieces)
        );
    }
}
