//! The protocol of `rping` (rdmacm-utils), so that its two sides can be the kernel's and ours.
//!
//! In each round the client sends where its text lies and the server reads it; the server sends that it has, the client
//! sends where it wants the text written, the server writes it there and sends that it has; the client compares. Every
//! message is 16 bytes: address, key and length, big-endian; those of the server say nothing but that they came.

use std::net::IpAddr;

use anyhow::{Context, Result, ensure};
use roce::verbs::{Access, Operation, QpType, Remote};
use roce::wire::Key;

use crate::connection::{Connection, Listener};
use crate::nic::{Nic, QueuePair, Region};

/// The port of `rping`.
const PORT: u16 = 7174;

/// Bytes of a text, with the zero that ends it.
const TEXT: u32 = 64;

/// Bytes of a message.
const MESSAGE: u32 = 16;

// Where things lie in the region.
const TEXT_HERE: u32 = 0;
const TEXT_BACK: u32 = 64;
const OUTGOING: u32 = 128;
const INCOMING: u32 = 192;
const REGION: usize = 256;

/// Connects to a server, has it read and write `rounds` texts, and disconnects.
pub(crate) fn client(server: IpAddr, rounds: u32) -> Result<()> {
    let nic = Nic::open()?;
    let side = Side::new(&nic)?;
    let connection = Connection::new(&nic, &side.qp, server, PORT, || side.post_receive())?;
    for round in 0..rounds {
        side.ask(round).with_context(|| format!("round {round}"))?;
    }
    connection.disconnect()
}

/// Waits for a client and serves it until it disconnects.
pub(crate) fn server(rounds: u32) -> Result<()> {
    let nic = Nic::open()?;
    let side = Side::new(&nic)?;
    let listener = Listener::new(&nic, PORT)?;
    println!("listening");
    let connection = listener.accept(&side.qp, || side.post_receive())?;
    for round in 0..rounds {
        side.answer().with_context(|| format!("round {round}"))?;
    }
    connection.wait_for_disconnect()
}

struct Side {
    region: Region,
    qp: QueuePair,
}

impl Side {
    fn new(nic: &Nic) -> Result<Self> {
        Ok(Self {
            region: nic.region(REGION, Access::all())?,
            qp: nic.queue_pair(QpType::Rc)?,
        })
    }

    fn ask(&self, round: u32) -> Result<()> {
        let text = text(round);
        self.region.put(TEXT_HERE, &text)?;
        self.region.put(TEXT_BACK, &[0; TEXT as usize])?;
        self.send(TEXT_HERE)?;
        self.receive()
            .context("the server's word that it has read")?;
        self.send(TEXT_BACK)?;
        self.receive()
            .context("the server's word that it has written")?;
        let back = self.region.bytes(TEXT_BACK, TEXT)?;
        ensure!(
            back == text,
            "the server wrote {:?}, not {:?}",
            String::from_utf8_lossy(&back),
            String::from_utf8_lossy(&text)
        );
        Ok(())
    }

    fn answer(&self) -> Result<()> {
        let (source, length) = self.receive().context("where the text is")?;
        ensure!(length <= TEXT, "a text of {length} bytes");
        self.qp
            .run(
                Operation::Read(source),
                self.region.piece(TEXT_HERE, length),
                None,
            )
            .context("reading the text")?;
        self.send(TEXT_HERE)?;
        let (sink, _) = self.receive().context("where the text shall go")?;
        self.qp
            .run(
                Operation::Write(sink),
                self.region.piece(TEXT_HERE, length),
                None,
            )
            .context("writing the text")?;
        self.send(TEXT_HERE)
    }

    /// Sends where the text at `offset` lies.
    fn send(&self, offset: u32) -> Result<()> {
        let Remote { addr, rkey } = self.region.remote(offset);
        let message = [
            &addr.to_be_bytes()[..],
            &rkey.0.to_be_bytes(),
            &TEXT.to_be_bytes(),
        ]
        .concat();
        self.region.put(OUTGOING, &message)?;
        self.qp
            .run(Operation::Send, self.region.piece(OUTGOING, MESSAGE), None)
    }

    /// Receives where the peer's text lies, and its length.
    fn receive(&self) -> Result<(Remote, u32)> {
        let completion = self.qp.received()?;
        ensure!(
            completion.byte_len == MESSAGE,
            "a message of {} bytes",
            completion.byte_len
        );
        let message = self.region.bytes(INCOMING, MESSAGE)?;
        self.post_receive()?;
        let (addr, rest) = message.split_first_chunk().expect("16 bytes");
        let (key, rest) = rest.split_first_chunk().expect("8 bytes");
        let (length, _) = rest.split_first_chunk().expect("4 bytes");
        let remote = Remote {
            addr: u64::from_be_bytes(*addr),
            rkey: Key(u32::from_be_bytes(*key)),
        };
        Ok((remote, u32::from_be_bytes(*length)))
    }

    fn post_receive(&self) -> Result<()> {
        self.qp
            .post_receive(0, self.region.piece(INCOMING, MESSAGE))
    }
}

/// The text of a round: told apart by its number, printable, ended by a zero.
fn text(round: u32) -> Vec<u8> {
    let mut text = format!("rdma-ping-{round}: ").into_bytes();
    let letters = (b'A'..=b'z').cycle().skip(round as usize);
    text.extend(letters.take(TEXT as usize - 1 - text.len()));
    text.push(0);
    text
}
