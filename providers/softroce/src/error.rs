//! What the device refuses, in the fabric's words.

use std::io;

use fabric::{Error, PostError};
use rnic::{DeviceLost, OpenError};

/// An error of the device that has no name of its own in the fabric.
pub(crate) fn lost(what: &str, error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::io(what, io::Error::other(error))
}

/// Why the device at an address was not opened.
pub(crate) fn open(error: OpenError) -> Error {
    let text = error.to_string();
    match error {
        OpenError::Io { source, .. } | OpenError::Capture { source, .. } => Error::io(text, source),
        other => Error::io("opening the device", io::Error::other(other)),
    }
}

/// Why a work was not accepted.
pub(crate) fn post(error: rnic::PostError) -> PostError {
    match error {
        rnic::PostError::QueueFull => PostError::QueueFull,
        rnic::PostError::TooManyPieces => PostError::TooManySegments,
        rnic::PostError::SharedReceives => PostError::SharedReceive,
        rnic::PostError::Unreachable => PostError::NoPeer,
        rnic::PostError::DeviceLost(DeviceLost) => PostError::DeviceLost,
        rnic::PostError::Reset | rnic::PostError::Work(roce::qp::PostError::State(_)) => {
            PostError::NotConnected
        }
        rnic::PostError::Work(_) => PostError::Unsupported,
    }
}
