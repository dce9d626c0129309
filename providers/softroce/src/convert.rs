//! The fabric's words in those of verbs, and back. Nothing here knows which verbs.

use fabric::provider::Exposed;
use fabric::{Access, Op, Opcode, PostError, Status, WorkFlags};
use roce::verbs::{
    self, CompletionKind, InlineBytes, Local, MAX_INLINE, Operation, Remote, Retries, SendFlags,
    Sge, SgeList,
};
use roce::wire::Key;

/// A key of the wire; what cannot be one names nothing.
pub(crate) fn key(key: u64) -> Key {
    Key(u32::try_from(key).unwrap_or(0))
}

/// Rights of a region. What is mapped read-only is not written to by anybody.
pub(crate) fn access(access: Access, is_writable: bool) -> verbs::Access {
    let rows = [
        (is_writable, verbs::Access::LOCAL_WRITE),
        (
            access.contains(Access::REMOTE_READ),
            verbs::Access::REMOTE_READ,
        ),
        (
            access.contains(Access::REMOTE_WRITE),
            verbs::Access::REMOTE_WRITE,
        ),
        (
            access.contains(Access::REMOTE_ATOMIC),
            verbs::Access::REMOTE_ATOMIC,
        ),
    ];
    rows.into_iter()
        .filter_map(|(given, right)| given.then_some(right))
        .collect()
}

/// What send work does; `None` for a receive.
pub(crate) fn operation(op: &Op) -> Option<Operation> {
    let at = |remote: fabric::RemoteAddr| Remote {
        addr: remote.addr,
        rkey: key(remote.key),
    };
    Some(match *op {
        Op::Send {
            immediate: Some(value),
            ..
        } => Operation::SendWithImm(value),
        Op::Send {
            invalidate: Some(revoked),
            ..
        } => Operation::SendWithInvalidate(key(revoked)),
        Op::Send { .. } => Operation::Send,
        Op::Write {
            remote,
            immediate: None,
        } => Operation::Write(at(remote)),
        Op::Write {
            remote,
            immediate: Some(value),
        } => Operation::WriteWithImm(at(remote), value),
        Op::Read { remote } => Operation::Read(at(remote)),
        Op::FetchAdd { remote, add } => Operation::FetchAdd {
            remote: at(remote),
            add,
        },
        Op::CompareSwap {
            remote,
            expected,
            new,
        } => Operation::CompareSwap {
            remote: at(remote),
            compare: expected,
            swap: new,
        },
        Op::Recv => return None,
    })
}

/// How send work is treated. All of it is signalled: that is how its memory comes back.
pub(crate) fn flags(flags: WorkFlags) -> SendFlags {
    let mut converted = SendFlags::SIGNALED;
    converted.set(SendFlags::FENCE, flags.contains(WorkFlags::FENCE));
    converted.set(SendFlags::SOLICITED, flags.contains(WorkFlags::SOLICITED));
    converted
}

/// Makes `list` the local memory of a work, as a gather or scatter list behind `front`.
///
/// # Errors
/// [`PostError::TooManySegments`].
#[inline]
pub(crate) fn list(
    local: &Exposed,
    front: Option<Sge>,
    list: &mut SgeList,
) -> Result<(), PostError> {
    let segments = local
        .iter()
        .filter(|segment| segment.len > 0)
        .map(|segment| Sge {
            addr: segment.memory.addr().wrapping_add(segment.offset as u64),
            // No message is longer, so what lies behind is never reached.
            length: u32::try_from(segment.len).unwrap_or(u32::MAX),
            lkey: segment.local_key().map_or(Key(0), key),
        });
    list.clear();
    for piece in front.into_iter().chain(segments) {
        if !list.push(piece) {
            return Err(PostError::TooManySegments);
        }
    }
    Ok(())
}

/// Makes `gather` the local memory of send work: the list, or the bytes themselves.
///
/// # Errors
/// [`PostError::TooManySegments`], [`PostError::InlineTooLong`].
#[inline]
pub(crate) fn gather(
    local: &Exposed,
    flags: WorkFlags,
    gather: &mut Local,
) -> Result<(), PostError> {
    if flags.contains(WorkFlags::INLINE) {
        *gather = inline(local)?;
        return Ok(());
    }
    if let Local::Inline(_) = gather {
        *gather = Local::Gather(SgeList::EMPTY);
    }
    match gather {
        Local::Gather(pieces) => list(local, None, pieces),
        Local::Inline(_) => unreachable!("just made a list"),
    }
}

/// The bytes of inline work, as they are now.
///
/// # Errors
/// [`PostError::InlineTooLong`].
fn inline(local: &Exposed) -> Result<Local, PostError> {
    let mut bytes = [0; MAX_INLINE];
    let mut at = 0;
    for segment in local.iter() {
        let part = bytes
            .get_mut(at..at + segment.len)
            .ok_or(PostError::InlineTooLong)?;
        // A truncated file shows zeros here: the file says so itself.
        let _ = segment.memory.copy_out(segment.offset, part);
        at += segment.len;
    }
    let inline = InlineBytes::new(&bytes[..at]).expect("no longer than the array");
    Ok(Local::Inline(inline))
}

/// How a work ended.
pub(crate) fn status(status: verbs::Status) -> Status {
    match status {
        verbs::Status::Success => Status::Success,
        verbs::Status::LocalLength => Status::LocalLength,
        verbs::Status::LocalQpOperation => Status::LocalOperation,
        verbs::Status::LocalProtection => Status::LocalProtection,
        verbs::Status::Flushed => Status::Flushed,
        verbs::Status::RemoteInvalidRequest => Status::RemoteInvalidRequest,
        verbs::Status::RemoteAccess => Status::RemoteAccess,
        verbs::Status::RemoteOperation => Status::RemoteOperation,
        verbs::Status::RetryExceeded => Status::RetryExceeded,
        verbs::Status::RnrRetryExceeded => Status::RnrRetryExceeded,
    }
}

/// What ended.
pub(crate) fn opcode(kind: CompletionKind) -> Opcode {
    match kind {
        CompletionKind::Send => Opcode::Send,
        CompletionKind::Write => Opcode::Write,
        CompletionKind::Read => Opcode::Read,
        CompletionKind::FetchAdd => Opcode::FetchAdd,
        CompletionKind::CompareSwap => Opcode::CompareSwap,
        CompletionKind::Recv => Opcode::Recv,
        CompletionKind::RecvWriteWithImm => Opcode::RecvWrite,
    }
}

/// How often something is tried again.
pub(crate) fn retries(retries: Option<u8>) -> Retries {
    retries.map_or(Retries::Unlimited, Retries::Limited)
}
