//! The states of a queue pair and what each transition needs (IBA 10.3.1, tables 91 to 94).

use std::fmt;

use bitflags::bitflags;

use crate::verbs::{QpAttr, QpState, QpType};

bitflags! {
    /// Which attributes a [`QpAttr`] sets.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct AttrMask: u16 {
        /// `access`
        const ACCESS = 1;
        /// `pkey`
        const PKEY = 1 << 1;
        /// `qkey`
        const QKEY = 1 << 2;
        /// `path`
        const PATH = 1 << 3;
        /// `path_mtu`
        const PATH_MTU = 1 << 4;
        /// `dest_qpn`
        const DEST_QPN = 1 << 5;
        /// `rq_psn`
        const RQ_PSN = 1 << 6;
        /// `sq_psn`
        const SQ_PSN = 1 << 7;
        /// `max_dest_rd_atomic`
        const MAX_DEST_RD_ATOMIC = 1 << 8;
        /// `max_rd_atomic`
        const MAX_RD_ATOMIC = 1 << 9;
        /// `min_rnr_timer`
        const MIN_RNR_TIMER = 1 << 10;
        /// `timeout`
        const TIMEOUT = 1 << 11;
        /// `retry_count`
        const RETRY_COUNT = 1 << 12;
        /// `rnr_retry`
        const RNR_RETRY = 1 << 13;
    }
}

impl AttrMask {
    /// The attributes that `attr` sets.
    pub fn of(attr: &QpAttr) -> Self {
        let mut mask = Self::empty();
        mask.set(Self::ACCESS, attr.access.is_some());
        mask.set(Self::PKEY, attr.pkey.is_some());
        mask.set(Self::QKEY, attr.qkey.is_some());
        mask.set(Self::PATH, attr.path.is_some());
        mask.set(Self::PATH_MTU, attr.path_mtu.is_some());
        mask.set(Self::DEST_QPN, attr.dest_qpn.is_some());
        mask.set(Self::RQ_PSN, attr.rq_psn.is_some());
        mask.set(Self::SQ_PSN, attr.sq_psn.is_some());
        mask.set(Self::MAX_DEST_RD_ATOMIC, attr.max_dest_rd_atomic.is_some());
        mask.set(Self::MAX_RD_ATOMIC, attr.max_rd_atomic.is_some());
        mask.set(Self::MIN_RNR_TIMER, attr.min_rnr_timer.is_some());
        mask.set(Self::TIMEOUT, attr.timeout.is_some());
        mask.set(Self::RETRY_COUNT, attr.retry_count.is_some());
        mask.set(Self::RNR_RETRY, attr.rnr_retry.is_some());
        mask
    }
}

/// Why a transition was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ModifyError {
    /// There is no such transition.
    NoTransition {
        /// Where the queue pair is.
        from: QpState,
        /// Where it should have gone.
        to: QpState,
    },
    /// The transition needs other attributes.
    Attributes {
        /// Where the queue pair is.
        from: QpState,
        /// Where it should have gone.
        to: QpState,
        /// What is needed and was not given.
        missing: AttrMask,
        /// What was given and has no place here.
        superfluous: AttrMask,
    },
    /// The addresses of the path are of different families.
    MixedAddressFamilies,
}

impl fmt::Display for ModifyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoTransition { from, to } => write!(
                f,
                "a queue pair of this type cannot go from {from:?} to {to:?}"
            ),
            Self::Attributes {
                from,
                to,
                missing,
                superfluous,
            } => {
                write!(f, "going from {from:?} to {to:?}")?;
                if !missing.is_empty() {
                    write!(f, " also needs {}", names(*missing))?;
                }
                if !superfluous.is_empty() {
                    let and = if missing.is_empty() { "" } else { " and" };
                    write!(f, "{and} does not take {}", names(*superfluous))?;
                }
                Ok(())
            }
            Self::MixedAddressFamilies => {
                f.write_str("the path's addresses are of different families")
            }
        }
    }
}

impl std::error::Error for ModifyError {}

/// Checks a change of attributes and returns the state that follows.
pub(crate) fn transition(
    qp_type: QpType,
    from: QpState,
    attr: &QpAttr,
) -> Result<QpState, ModifyError> {
    let to = attr.state.unwrap_or(from);
    if let Some(path) = attr.path
        && path.source.is_ipv4() != path.destination.is_ipv4()
    {
        return Err(ModifyError::MixedAddressFamilies);
    }
    let (needed, optional) =
        rule(qp_type, from, to).ok_or(ModifyError::NoTransition { from, to })?;
    let given = AttrMask::of(attr);
    let missing = needed - given;
    let superfluous = given - needed - optional;
    if missing.is_empty() && superfluous.is_empty() {
        Ok(to)
    } else {
        Err(ModifyError::Attributes {
            from,
            to,
            missing,
            superfluous,
        })
    }
}

/// The attributes that a transition needs and those that it also takes; `None` where there is no transition.
fn rule(qp_type: QpType, from: QpState, to: QpState) -> Option<(AttrMask, AttrMask)> {
    use AttrMask as A;
    use QpState::{Err, Init, Reset, Rtr, Rts, Sqd, Sqe};
    use QpType::{Rc, Uc, Ud};

    let none = A::empty();
    let identity = if qp_type == Ud {
        A::PKEY | A::QKEY
    } else {
        A::PKEY | A::ACCESS
    };
    let changeable = match qp_type {
        Rc => A::ACCESS | A::MIN_RNR_TIMER,
        Uc => A::ACCESS,
        Ud => A::QKEY,
    };
    let connection = A::PATH | A::PATH_MTU | A::DEST_QPN | A::RQ_PSN;
    let patience = A::TIMEOUT | A::RETRY_COUNT | A::RNR_RETRY | A::MAX_RD_ATOMIC;
    Some(match (from, to) {
        (_, Reset | Err) => (none, none),
        (Reset, Init) => (identity, none),
        (Init, Init) => (none, identity),
        (Init, Rtr) => match qp_type {
            Rc => (
                connection | A::MAX_DEST_RD_ATOMIC | A::MIN_RNR_TIMER,
                identity,
            ),
            Uc => (connection, identity),
            Ud => (none, identity),
        },
        (Rtr, Rts) => match qp_type {
            Rc => (A::SQ_PSN | patience, changeable),
            Uc | Ud => (A::SQ_PSN, changeable),
        },
        (Rts, Rts) | (Sqd, Rts) => (none, changeable),
        (Rts, Sqd) => (none, none),
        (Sqd, Sqd) => match qp_type {
            Rc => (
                none,
                changeable | patience | A::PATH | A::MAX_DEST_RD_ATOMIC | A::PKEY,
            ),
            Uc => (none, changeable | A::PATH | A::PKEY),
            Ud => (none, changeable | A::PKEY),
        },
        (Sqe, Rts) if qp_type != Rc => (none, changeable),
        _ => return None,
    })
}

fn names(mask: AttrMask) -> String {
    mask.iter_names()
        .map(|(name, _)| name.to_lowercase())
        .collect::<Vec<_>>()
        .join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verbs::Access;

    #[test]
    fn a_refused_transition_says_what_is_missing_and_what_is_too_much() {
        let attr = QpAttr {
            state: Some(QpState::Init),
            qkey: Some(1),
            access: Some(Access::empty()),
            ..QpAttr::default()
        };
        let error = transition(QpType::Rc, QpState::Reset, &attr).unwrap_err();
        assert_eq!(
            error,
            ModifyError::Attributes {
                from: QpState::Reset,
                to: QpState::Init,
                missing: AttrMask::PKEY,
                superfluous: AttrMask::QKEY
            }
        );
        assert_eq!(
            error.to_string(),
            "going from Reset to Init also needs pkey and does not take qkey"
        );
    }

    #[test]
    fn every_state_leads_to_reset_and_error_and_reset_leads_only_to_init() {
        use QpState::{Err, Init, Reset, Rtr, Rts, Sqd, Sqe};
        for qp_type in [QpType::Rc, QpType::Uc, QpType::Ud] {
            for from in [Reset, Init, Rtr, Rts, Sqd, Sqe, Err] {
                for to in [Reset, Err] {
                    assert!(rule(qp_type, from, to).is_some());
                }
            }
            for to in [Reset, Init, Rtr, Rts, Sqd, Sqe, Err] {
                assert_eq!(
                    rule(qp_type, Reset, to).is_some(),
                    matches!(to, Reset | Init | Err),
                    "{qp_type:?} {to:?}"
                );
                assert_eq!(
                    rule(qp_type, Err, to).is_some(),
                    matches!(to, Reset | Err),
                    "{qp_type:?} {to:?}"
                );
            }
        }
        assert!(rule(QpType::Rc, Sqe, Rts).is_none());
        assert!(rule(QpType::Ud, Sqe, Rts).is_some());
    }
}
