//! Recognises software peers without the connection manager.
//!
//! A marked source port raises a suspicion, a hello on queue pair 1 asks, and the echoed nonce is the proof.
//! Strangers never get anything but one or a few datagrams of a management class that they ignore.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use roce::time::Instant;
use roce::wire::extension::{Hello, Offer};

/// Questions that are waiting for their answers.
#[derive(Debug)]
pub(crate) struct Peers {
    /// What we offer; `None` when extensions are off: then nothing is asked and nothing answered.
    offer: Option<Offer>,
    incarnation: u64,
    random: u64,
    asked: HashMap<IpAddr, Asked>,
}

#[derive(Debug, Clone, Copy)]
struct Asked {
    nonce: u64,
    again_at: Instant,
    tries: u8,
}

impl Peers {
    /// Nothing asked yet. `seed` is random.
    pub(crate) fn new(offer: Option<Offer>, seed: u64) -> Self {
        Self {
            offer,
            incarnation: seed,
            random: seed.rotate_left(32),
            asked: HashMap::new(),
        }
    }

    /// Whether we look for software peers at all.
    pub(crate) const fn is_on(&self) -> bool {
        self.offer.is_some()
    }

    /// The hello to send to a peer that is suspected of being software, unless it is being asked already.
    pub(crate) fn ask(&mut self, now: Instant, peer: IpAddr) -> Option<Hello> {
        let offer = self.offer?;
        if self.asked.contains_key(&peer) || self.asked.len() >= AT_ONCE {
            return None;
        }
        // SplitMix64 from a random start: not to be guessed without seeing an earlier one.
        self.random = self.random.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut nonce = self.random;
        nonce = (nonce ^ (nonce >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        nonce = (nonce ^ (nonce >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        self.asked.insert(
            peer,
            Asked {
                nonce,
                again_at: now + PATIENCE,
                tries: 1,
            },
        );
        Some(Hello {
            is_reply: false,
            offer,
            nonce,
            incarnation: self.incarnation,
        })
    }

    /// The reply to a peer's hello.
    pub(crate) fn reply(&self, hello: &Hello) -> Option<Hello> {
        Some(Hello {
            is_reply: true,
            offer: self.offer?,
            nonce: hello.nonce,
            incarnation: self.incarnation,
        })
    }

    /// Whether `hello` answers our question: what the peer offers is then both sides' to use.
    pub(crate) fn is_proof(&mut self, peer: IpAddr, hello: &Hello) -> bool {
        let answers = self
            .asked
            .get(&peer)
            .is_some_and(|asked| hello.is_reply && asked.nonce == hello.nonce);
        if answers {
            self.asked.remove(&peer);
        }
        answers
    }

    /// When [`Peers::repeat`] is due.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        self.asked.values().map(|asked| asked.again_at).min()
    }

    /// Calls `send` for the questions to be asked again; gives up those that were asked often enough.
    pub(crate) fn repeat(&mut self, now: Instant, mut send: impl FnMut(IpAddr, &Hello)) {
        let (offer, incarnation) = (self.offer, self.incarnation);
        self.asked.retain(|peer, asked| {
            if asked.again_at > now {
                return true;
            }
            let Some(offer) = offer.filter(|_| asked.tries < TRIES) else {
                return false;
            };
            asked.tries += 1;
            asked.again_at = now + PATIENCE * (1 << asked.tries);
            send(
                *peer,
                &Hello {
                    is_reply: false,
                    offer,
                    nonce: asked.nonce,
                    incarnation,
                },
            );
            true
        });
    }
}

const PATIENCE: Duration = Duration::from_millis(20);
const TRIES: u8 = 4;
const AT_ONCE: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    const OFFER: Offer = Offer {
        version: 1,
        flags: Offer::SACK,
        window: 50,
    };

    #[test]
    fn only_the_answer_to_our_own_question_is_proof() {
        let (mut a, b) = (Peers::new(Some(OFFER), 1), Peers::new(Some(OFFER), 2));
        let (peer, other) = (IpAddr::from([127, 0, 0, 2]), IpAddr::from([127, 0, 0, 3]));
        let hello = a.ask(Instant::ZERO, peer).expect("not asked before");
        assert!(a.ask(Instant::ZERO, peer).is_none(), "asked twice at once");
        let reply = b.reply(&hello).unwrap();
        assert!(!a.is_proof(peer, &hello), "an echo of the question");
        assert!(!a.is_proof(other, &reply), "from elsewhere");
        assert!(!a.is_proof(
            peer,
            &Hello {
                nonce: reply.nonce ^ 1,
                ..reply
            }
        ));
        assert!(a.is_proof(peer, &reply));
        assert!(!a.is_proof(peer, &reply), "once only");
    }

    #[test]
    fn a_silent_peer_is_asked_a_few_times() {
        let mut peers = Peers::new(Some(OFFER), 1);
        let peer = IpAddr::from([127, 0, 0, 2]);
        peers.ask(Instant::ZERO, peer).unwrap();
        let mut asked = 1;
        while let Some(at) = peers.poll_timeout() {
            peers.repeat(at, |_, _| asked += 1);
        }
        assert_eq!(asked, TRIES);
    }

    #[test]
    fn with_extensions_off_nothing_is_said() {
        let mut peers = Peers::new(None, 1);
        assert!(
            peers
                .ask(Instant::ZERO, IpAddr::from([127, 0, 0, 2]))
                .is_none()
        );
        let hello = Hello {
            is_reply: false,
            offer: OFFER,
            nonce: 1,
            incarnation: 2,
        };
        assert!(peers.reply(&hello).is_none());
    }
}
