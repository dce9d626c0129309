//! UDP between two processes: a datagram to and fro, and a stream with segmentation offload (GSO) and coalescing (GRO).

use std::io::ErrorKind;
use std::net::UdpSocket;
use std::os::fd::AsRawFd as _;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use socket2::SockRef;

use crate::figure::Figure;
use crate::peer::{self, Peer};

/// Sends `size` bytes and waits for their echo, again and again.
pub(crate) fn latency(peer: Peer, time: Duration, size: usize) -> Result<Figure> {
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    socket.connect(peer.address)?;
    socket.set_nonblocking(true)?;
    let mut bytes = vec![1; size];
    let (start, mut trips) = (Instant::now(), Vec::with_capacity(1 << 20));
    while trips.is_empty() || start.elapsed() < time {
        let begun = Instant::now();
        socket.send(&bytes)?;
        while let Err(error) = socket.recv(&mut bytes) {
            would_block(error)?;
        }
        trips.push(begun.elapsed().as_nanos() as u64);
    }
    Ok(Figure::of_round_trips(trips))
}

/// The other side of [`latency`].
pub(crate) fn echo(size: usize) -> Result<()> {
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    socket.set_nonblocking(true)?;
    peer::announce(socket.local_addr()?)?;
    let mut bytes = vec![0; size.max(1)];
    while !peer::is_over() {
        match socket.recv_from(&mut bytes) {
            Ok((length, from)) => _ = socket.send_to(&bytes[..length], from)?,
            Err(error) => would_block(error)?,
        }
    }
    Ok(())
}

/// Sends datagrams of `segment` bytes, as many a call as one takes, without asking whether they arrive.
pub(crate) fn stream(peer: Peer, time: Duration, segment: usize) -> Result<Figure> {
    let segment = segment.clamp(1, MOST_BYTES);
    let burst = segment * (MOST_BYTES / segment).min(MOST_SEGMENTS);
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    socket.connect(peer.address)?;
    set(&socket, libc::UDP_SEGMENT, segment)?;
    let bytes = vec![7; burst];
    let (start, mut sent) = (Instant::now(), 0);
    while start.elapsed() < time {
        sent += socket.send(&bytes)? as u64;
    }
    let counted = peer.finish()?;
    let counts: Vec<u64> = counted
        .split(' ')
        .map_while(|word| word.parse().ok())
        .collect();
    let [received, after_first, nanoseconds] = counts[..] else {
        bail!("the other side did not count");
    };
    let seconds = nanoseconds.max(1) as f64 / 1e9;
    Ok(Figure {
        gbit_per_s: Some(after_first as f64 * 8.0 / 1e9 / seconds),
        mmsg_per_s: Some(after_first as f64 / segment as f64 / 1e6 / seconds),
        drops: Some(sent.saturating_sub(received) / segment as u64),
        ..Figure::default()
    })
}

/// The other side of [`stream`]: counts the bytes, and the time from the first to the last.
pub(crate) fn sink(receive_buffer: usize) -> Result<()> {
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    socket.set_nonblocking(true)?;
    set(&socket, libc::UDP_GRO, 1)?;
    enlarge(&socket, receive_buffer);
    peer::announce(socket.local_addr()?)?;
    let mut bytes = vec![0; 1 << 16];
    let (mut received, mut after_first) = (0, 0);
    let (mut first, mut last) = (None, Instant::now());
    loop {
        match socket.recv(&mut bytes) {
            Ok(length) => {
                last = Instant::now();
                received += length as u64;
                // What came first began the clock.
                match first {
                    None => first = Some(last),
                    Some(_) => after_first += length as u64,
                }
            }
            Err(error) => {
                would_block(error)?;
                if peer::is_over() {
                    break;
                }
            }
        }
    }
    let time = last.duration_since(first.unwrap_or(last));
    peer::say(&format!("{received} {after_first} {}", time.as_nanos()))
}

/// As much buffer as was asked for, or as the system gives; 0 leaves the default.
fn enlarge(socket: &UdpSocket, bytes: usize) {
    if bytes == 0 {
        return;
    }
    let forced = set_at(socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, bytes);
    if forced.is_err() {
        let _ = SockRef::from(socket).set_recv_buffer_size(bytes);
    }
}

fn set(socket: &UdpSocket, option: libc::c_int, value: usize) -> Result<()> {
    set_at(socket, libc::SOL_UDP, option, value).context("the kernel has no UDP segmentation")
}

fn set_at(socket: &UdpSocket, level: libc::c_int, option: libc::c_int, value: usize) -> Result<()> {
    let value = libc::c_int::try_from(value)?;
    // SAFETY: `value` is a live c_int and its own size is passed.
    let code = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            option,
            (&raw const value).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if code != 0 {
        return Err(std::io::Error::last_os_error().into());
    }
    Ok(())
}

/// Passes every error on but the one that means "not yet".
fn would_block(error: std::io::Error) -> Result<()> {
    if error.kind() == ErrorKind::WouldBlock {
        std::hint::spin_loop();
        return Ok(());
    }
    Err(error.into())
}

/// Of one segmentation offload, as Linux has it.
const MOST_SEGMENTS: usize = 64;
const MOST_BYTES: usize = 65_507;
