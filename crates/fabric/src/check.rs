//! What can be refused without the device, checked once for every provider.

use crate::{
    AddressVector, Capabilities, EndpointKind, Op, Operations, PostError, Segment, Work, WorkFlags,
};

/// What an endpoint permits.
pub(crate) struct Limits<'a> {
    pub(crate) domain: u64,
    pub(crate) capabilities: &'a Capabilities,
    pub(crate) kind: EndpointKind,
    pub(crate) addresses: &'a AddressVector,
    pub(crate) max_inline: usize,
    pub(crate) shares_receives: bool,
}

/// How many of `work`, from the front, may be posted, and why the next may not.
pub(crate) type Valid = (usize, Result<(), PostError>);

/// Checks work for an endpoint.
pub(crate) fn endpoint_work(work: &[Work], limits: &Limits<'_>) -> Valid {
    prefix(work, |work| one(work, limits))
}

/// Checks work for a shared receive queue.
pub(crate) fn receives(work: &[Work], capabilities: &Capabilities, domain: u64) -> Valid {
    prefix(work, |work| {
        if work.op != Op::Recv {
            return Err(PostError::SharedReceive);
        }
        segments(work, capabilities, domain)
    })
}

/// Posts the valid prefix by `post`, and leaves the rest in the vector behind what was not accepted.
pub(crate) fn post_valid(
    work: &mut Vec<Work>,
    (count, invalid): Valid,
    post: impl FnOnce(&mut Vec<Work>) -> Result<(), PostError>,
) -> Result<(), PostError> {
    if count == work.len() {
        return post(work);
    }
    let mut rest = work.split_off(count);
    let accepted = post(work);
    work.append(&mut rest);
    accepted.and(invalid)
}

fn prefix(work: &[Work], mut check: impl FnMut(&Work) -> Result<(), PostError>) -> Valid {
    for (index, work) in work.iter().enumerate() {
        if let Err(error) = check(work) {
            return (index, Err(error));
        }
    }
    (work.len(), Ok(()))
}

fn one(work: &Work, limits: &Limits<'_>) -> Result<(), PostError> {
    operation(work, limits)?;
    if work.op == Op::Recv {
        if limits.shares_receives {
            return Err(PostError::SharedReceive);
        }
    } else if limits.kind != EndpointKind::Msg {
        let known = work
            .peer
            .is_some_and(|peer| limits.addresses.contains(peer));
        if !known {
            return Err(PostError::NoPeer);
        }
    }
    segments(work, limits.capabilities, limits.domain)?;
    lengths(work, limits)
}

fn operation(work: &Work, limits: &Limits<'_>) -> Result<(), PostError> {
    let mut needs = match work.op {
        Op::Send { .. } | Op::Recv => Operations::SEND,
        Op::Write { .. } => Operations::WRITE,
        Op::Read { .. } => Operations::READ,
        Op::FetchAdd { .. } | Op::CompareSwap { .. } => Operations::ATOMIC,
    };
    let one_sided = needs != Operations::SEND;
    if work.op.immediate().is_some() {
        needs |= Operations::IMMEDIATE;
    }
    if let Op::Send {
        invalidate: Some(_),
        immediate,
    } = work.op
    {
        needs |= Operations::INVALIDATE;
        // No wire format has room for both.
        if immediate.is_some() || limits.kind == EndpointKind::Dgram {
            return Err(PostError::Unsupported);
        }
    }
    let supported = limits.capabilities.operations.contains(needs);
    if !supported || (one_sided && limits.kind == EndpointKind::Dgram) {
        return Err(PostError::Unsupported);
    }
    Ok(())
}

fn segments(work: &Work, capabilities: &Capabilities, domain: u64) -> Result<(), PostError> {
    let segments = work.local.as_slice();
    if segments.len() > capabilities.max_segments {
        return Err(PostError::TooManySegments);
    }
    for segment in segments {
        match segment {
            Segment::Buf(buf) => match buf.domain() {
                Some(registered) if registered != domain => return Err(PostError::OtherDomain),
                None if capabilities.registers_private_memory => {
                    return Err(PostError::OtherDomain);
                }
                _ => {}
            },
            Segment::Region { region, .. } => {
                if region.domain() != domain {
                    return Err(PostError::OtherDomain);
                }
                if region.is_revoked() {
                    return Err(PostError::Revoked);
                }
                if work.op.scatters() && !region.memory().is_writable() {
                    return Err(PostError::ReadOnly);
                }
            }
        }
    }
    Ok(())
}

fn lengths(work: &Work, limits: &Limits<'_>) -> Result<(), PostError> {
    let len = work.len();
    if work.op.is_atomic() && (len != 8 || work.local.as_slice().len() != 1) {
        return Err(PostError::AtomicLength);
    }
    if work.flags.contains(WorkFlags::INLINE) {
        if work.op.scatters() {
            return Err(PostError::Unsupported);
        }
        if len > limits.max_inline {
            return Err(PostError::InlineTooLong);
        }
    }
    let longest = match limits.kind {
        // A receive may have room for more than can come.
        _ if work.op == Op::Recv => usize::MAX,
        EndpointKind::Dgram => limits.capabilities.max_datagram,
        EndpointKind::Msg | EndpointKind::Rdm => limits.capabilities.max_message,
    };
    if len > longest {
        return Err(PostError::MessageTooLong);
    }
    Ok(())
}
