//! Sockets of connections: sequenced packets between processes, under names that are in no file system.
//!
//! A name is this user's by what the kernel says of its owner, not by the name: both sides ask for the credentials of the other,
//! so a process of another user that took the name, or found it, gets nothing.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};

use crate::wire::Message;

/// What a packet brought.
#[derive(Debug)]
pub(crate) struct Received {
    /// The message; none if it made no sense.
    pub(crate) message: Option<Message>,
    /// The files that came with it.
    pub(crate) files: Vec<OwnedFd>,
}

/// Who is at the other end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Credentials {
    /// Zero for a process that has no number here: one of another namespace.
    pub(crate) pid: i32,
    pub(crate) uid: u32,
}

/// Listens under a name of this user's.
///
/// # Errors
/// `AddrInUse`; what the system answers.
pub(crate) fn listen(name: &str) -> io::Result<OwnedFd> {
    let socket = open()?;
    rustix::net::bind(&socket, &place(name)?)?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(socket)
}

/// Connects to who listens under a name. Never blocks.
///
/// # Errors
/// `ConnectionRefused` if nobody does, `WouldBlock` if too many want to, `PermissionDenied` if it is another user.
pub(crate) fn connect(name: &str) -> io::Result<(OwnedFd, Credentials)> {
    let socket = open()?;
    rustix::net::connect(&socket, &place(name)?)?;
    let peer = credentials(socket.as_fd())?;
    Ok((socket, peer))
}

/// The next connection to a listening socket; `None` if there is none, or it is another user's.
///
/// # Errors
/// What the system answers; `WouldBlock` if nobody waits.
pub(crate) fn accept(listener: BorrowedFd<'_>) -> io::Result<(OwnedFd, Credentials)> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::accept_with(listener, flags)?;
    let peer = credentials(socket.as_fd())?;
    Ok((socket, peer))
}

/// Sends a message whole, or not at all. Never blocks.
///
/// # Errors
/// The peer is gone, or has not read what it was sent before.
pub(crate) fn send(
    socket: BorrowedFd<'_>,
    message: &Message,
    files: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let bytes = message.to_bytes();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FILES))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !files.is_empty() {
        let fits = control.push(SendAncillaryMessage::ScmRights(files));
        assert!(fits, "no message has more files");
    }
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    rustix::net::sendmsg(socket, &[IoSlice::new(&bytes)], &mut control, flags)?;
    Ok(())
}

/// The next message; `None` at the end.
///
/// # Errors
/// `WouldBlock` if there is none yet; what the system answers.
pub(crate) fn receive(socket: BorrowedFd<'_>) -> io::Result<Option<Received>> {
    let mut bytes = [0; Message::ROOM];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FILES))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = rustix::net::recvmsg(
        socket,
        &mut [IoSliceMut::new(&mut bytes)],
        &mut control,
        RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC,
    )?;
    let files: Vec<_> = control
        .drain()
        .filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(files) => Some(files),
            _ => None,
        })
        .flatten()
        .collect();
    if received.bytes == 0 {
        return Ok(None);
    }
    let cut = received
        .flags
        .intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC);
    let message = match cut {
        true => {
            tracing::warn!("a peer sent more than can be taken: are all descriptors used up?");
            None
        }
        false => Message::parse(&bytes[..received.bytes]),
    };
    Ok(Some(Received { message, files }))
}

/// Ends both directions; the other side sees the end.
pub(crate) fn shut(socket: BorrowedFd<'_>) {
    // It may have ended already.
    let _ = rustix::net::shutdown(socket, rustix::net::Shutdown::Both);
}

fn open() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let family = AddressFamily::UNIX;
    Ok(rustix::net::socket_with(
        family,
        SocketType::SEQPACKET,
        flags,
        None,
    )?)
}

fn place(name: &str) -> io::Result<SocketAddrUnix> {
    let user = rustix::process::geteuid().as_raw();
    let name = format!("ringmail/{user}/{name}");
    Ok(SocketAddrUnix::new_abstract_name(name.as_bytes())?)
}

/// Who is at the other end, if it is this user.
fn credentials(socket: BorrowedFd<'_>) -> io::Result<Credentials> {
    let mut peer = libc::ucred {
        pid: 0,
        uid: 0,
        gid: 0,
    };
    let mut len = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: writes at most `len` bytes to a record of that size, for which any bytes are valid.
    let asked = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut peer).cast(),
            &raw mut len,
        )
    };
    if asked != 0 {
        return Err(io::Error::last_os_error());
    }
    let credentials = Credentials {
        pid: peer.pid,
        uid: peer.uid,
    };
    if credentials.uid != rustix::process::geteuid().as_raw() {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    Ok(credentials)
}

/// Most files with one message.
const MAX_FILES: usize = 4;
const BACKLOG: i32 = 128;

#[cfg(test)]
mod tests {
    use super::*;

    /// Under a name that nobody else has.
    fn listen_somewhere() -> (String, OwnedFd) {
        loop {
            let name = format!("test:{}", getrandom::u32().unwrap());
            if let Ok(socket) = listen(&name) {
                return (name, socket);
            }
        }
    }

    #[test]
    fn messages_and_files_arrive() {
        let (name, listener) = listen_somewhere();
        assert_eq!(
            listen(&name).expect_err("taken").kind(),
            io::ErrorKind::AddrInUse
        );
        let (client, peer) = connect(&name).unwrap();
        assert_eq!(peer.pid, rustix::process::getpid().as_raw_nonzero().get());
        let (server, _) = accept(listener.as_fd()).unwrap();
        let want = Message::Want { key: 5 };
        send(client.as_fd(), &want, &[listener.as_fd()]).unwrap();
        let received = receive(server.as_fd()).unwrap().expect("not the end");
        assert_eq!(received.message, Some(want));
        assert_eq!(received.files.len(), 1);
        let nothing = receive(server.as_fd()).expect_err("nothing more");
        assert_eq!(nothing.kind(), io::ErrorKind::WouldBlock);
        shut(client.as_fd());
        assert!(receive(server.as_fd()).unwrap().is_none(), "the end shows");
    }

    #[test]
    fn nobody_listening_refuses() {
        let (name, listener) = listen_somewhere();
        drop(listener);
        let refused = connect(&name).expect_err("nobody is there");
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
    }
}
