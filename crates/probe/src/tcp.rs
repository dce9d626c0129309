//! TCP between two processes: a message to and fro, and a stream.

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::figure::Figure;
use crate::peer::{self, Peer};

/// Sends `size` bytes and waits for their echo, again and again.
pub(crate) fn latency(peer: Peer, time: Duration, size: usize) -> Result<Figure> {
    let mut stream = TcpStream::connect(peer.address)?;
    spinning(&stream)?;
    let mut bytes = vec![1; size.max(1)];
    let (start, mut trips) = (Instant::now(), Vec::with_capacity(1 << 20));
    while trips.is_empty() || start.elapsed() < time {
        let begun = Instant::now();
        send(&mut stream, &bytes)?;
        if !receive(&mut stream, &mut bytes)? {
            bail!("the other side ended");
        }
        trips.push(begun.elapsed().as_nanos() as u64);
    }
    Ok(Figure::of_round_trips(trips))
}

/// The other side of [`latency`].
pub(crate) fn echo(size: usize) -> Result<()> {
    let mut stream = accept()?;
    spinning(&stream)?;
    let mut bytes = vec![0; size.max(1)];
    while receive(&mut stream, &mut bytes)? {
        send(&mut stream, &bytes)?;
    }
    Ok(())
}

/// Writes `size` bytes, again and again.
pub(crate) fn stream(peer: Peer, time: Duration, size: usize) -> Result<Figure> {
    let mut stream = TcpStream::connect(peer.address)?;
    let bytes = vec![7; size.max(1)];
    let start = Instant::now();
    while start.elapsed() < time {
        stream.write_all(&bytes)?;
    }
    // The other side counts to the end of the stream.
    drop(stream);
    let received: u64 = peer
        .finish()?
        .parse()
        .context("the other side did not count")?;
    let seconds = start.elapsed().as_secs_f64();
    Ok(Figure {
        gbit_per_s: Some(received as f64 * 8.0 / 1e9 / seconds),
        ..Figure::default()
    })
}

/// The other side of [`stream`].
pub(crate) fn sink(size: usize) -> Result<()> {
    let mut stream = accept()?;
    let (mut bytes, mut received) = (vec![0; size.max(1)], 0);
    loop {
        match stream.read(&mut bytes)? {
            0 => return peer::say(&received.to_string()),
            length => received += length as u64,
        }
    }
}

fn accept() -> Result<TcpStream> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    peer::announce(listener.local_addr()?)?;
    Ok(listener.accept()?.0)
}

fn spinning(stream: &TcpStream) -> Result<()> {
    stream.set_nodelay(true)?;
    Ok(stream.set_nonblocking(true)?)
}

fn send(stream: &mut TcpStream, mut bytes: &[u8]) -> Result<()> {
    while !bytes.is_empty() {
        match stream.write(bytes) {
            Ok(length) => bytes = &bytes[length..],
            Err(error) if error.kind() == ErrorKind::WouldBlock => std::hint::spin_loop(),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Fills `bytes`; false where the stream ended instead.
fn receive(stream: &mut TcpStream, bytes: &mut [u8]) -> Result<bool> {
    let mut filled = 0;
    while filled < bytes.len() {
        match stream.read(&mut bytes[filled..]) {
            Ok(0) => return Ok(false),
            Ok(length) => filled += length,
            Err(error) if error.kind() == ErrorKind::WouldBlock => std::hint::spin_loop(),
            // A peer that is killed may reset instead.
            Err(error) if error.kind() == ErrorKind::ConnectionReset => return Ok(false),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(true)
}
