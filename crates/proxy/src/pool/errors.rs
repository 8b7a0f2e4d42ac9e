//! Why requests got no response, and what that says about sending them again.

use super::Pool;
use crate::connect::{ConnectError, Security};

/// Why a request got no response.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum SendError {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error("the upstream closed the connection before it answered: {0}")]
    Reset(String),
    #[error("the upstream reset the stream before it answered: {0}")]
    StreamReset(h2::Reason),
    #[error("the upstream's answer is no valid HTTP: {0}")]
    Protocol(String),
    /// Nothing was sent: a bound of a DestinationRule is reached.
    #[error("{0}")]
    Overflow(&'static str),
}

impl SendError {
    /// Whether it took no time to find out, so that trying again costs little.
    pub(crate) fn is_quick(&self) -> bool {
        !matches!(self, Self::Connect(ConnectError::Timeout { .. } | ConnectError::Ordered { .. }))
    }
}

impl Pool {
    /// Why a connection of HTTP/1.1 failed. A server outside that does not accept our certificate says so only now.
    pub(super) fn failure(&self, error: &hyper::Error) -> SendError {
        let mut source = std::error::Error::source(error);
        while let Some(cause) = source {
            let refusal = cause
                .downcast_ref::<std::io::Error>()
                .and_then(|io| self.upstream.security.refusal_by_peer(self.upstream.address, io));
            if let Some(refusal) = refusal {
                return refusal.into();
            }
            source = cause.source();
        }
        reset(error)
    }

    /// Why a stream, or its connection, failed.
    pub(super) fn failure_of_stream(&self, error: &h2::Error) -> SendError {
        if let Some(refusal) =
            error.get_io().and_then(|io| self.upstream.security.refusal_by_peer(self.upstream.address, io))
        {
            return refusal.into();
        }
        let reset = match error.reason() {
            Some(reason) if error.is_reset() && error.is_remote() => SendError::StreamReset(reason),
            _ => SendError::Reset(error.to_string()),
        };
        match (reset, &self.upstream.security) {
            // Of the connection's error only the text is left.
            (SendError::Reset(why), Security::Ordered { order, .. }) => SendError::Reset(format!(
                "{why} (DestinationRule {}: a server that does not take the client certificate may end connections so)",
                order.rule
            )),
            (error, _) => error,
        }
    }
}

/// Whether the upstream says that it has done nothing about a request: it refused the stream (RFC 9113 section 8.7), or
/// went away before it (section 6.8: streams beyond the last that GOAWAY names fail with it, others do not).
pub(super) fn is_refused(error: &h2::Error) -> bool {
    let is_refusal = error.reason() == Some(h2::Reason::REFUSED_STREAM) || error.is_go_away();
    error.is_remote() && is_refusal
}

/// Whether the connection had been closed before the upstream could have answered.
pub(super) fn is_stale(error: &hyper::Error) -> bool {
    error.is_incomplete_message() || error.is_closed() || error.is_canceled() || is_io(error)
}

fn is_io(error: &hyper::Error) -> bool {
    std::error::Error::source(error).is_some_and(|source| source.is::<std::io::Error>())
}

fn reset(error: &hyper::Error) -> SendError {
    if error.is_parse() {
        return SendError::Protocol(error.to_string());
    }
    match std::error::Error::source(error) {
        Some(source) => SendError::Reset(format!("{error}: {source}")),
        None => SendError::Reset(error.to_string()),
    }
}
