//! What can go wrong between the pool and an upstream, and what the agent and the log are told about it.

use std::borrow::Cow;
use std::error::Error as StdError;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use super::address::AddressError;
use super::egress::EgressError;
use super::tls::{self, Peer, TlsError};
use crate::error::{Code, ProxyError};

/// Why a request got no answer.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// No connection came to be, so nothing was sent. Shared by all requests that waited for the same attempt.
    #[error("no connection to the upstream")]
    Connect(#[source] Arc<ConnectError>),
    /// The connection ended, or the stream was reset, before a byte of an answer came. The request was sent in part
    /// or in full, and the upstream may have acted on it.
    #[error("the upstream broke off before it answered")]
    Unanswered {
        /// What hyper says.
        source: hyper::Error,
        /// True if the connection had carried an earlier request to its answer. Upstreams close such connections at
        /// any time, and a request may cross with that (RFC 9112 section 9.3.1).
        reused: bool,
    },
    /// The upstream sent something that is no answer this proxy can pass on.
    #[error("the upstream's answer is malformed")]
    BadAnswer(#[source] hyper::Error),
    /// The upstream switched protocols although it was not asked to.
    #[error("the upstream switched protocols without being asked")]
    UnaskedUpgrade,
    /// The agent's body ended in an error.
    #[error("the request's body broke off")]
    RequestBody(#[source] hyper::Error),
    /// The request has a `Host` that cannot be an HTTP/2 authority.
    #[error("the Host field cannot be sent as an HTTP/2 authority")]
    Authority(#[source] http::Error),
    /// The request has no `Host`.
    #[error("the request has no Host field")]
    NoHost,
    /// The answer did not begin within this field of the route.
    #[error("no answer within the route's {0}")]
    Late(&'static str),
}

/// Why no connection came to be.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The name has no address.
    #[error("the upstream's name cannot be resolved")]
    Resolve(#[source] io::Error),
    /// Every address is one that must not be connected to; the reason is the first one's.
    #[error("the upstream's address is refused")]
    Refused(#[source] AddressError),
    /// No address accepted a connection; the reason is the last one's.
    #[error("the upstream cannot be connected to")]
    Io(#[source] io::Error),
    /// The egress proxy did not connect to the upstream.
    #[error("the egress proxy does not connect to the upstream")]
    Egress(#[source] EgressError),
    /// The connection, egress proxy, TLS and HTTP/2 settings included, did not stand in time.
    #[error("no connection to the upstream within {0:?}")]
    Timeout(Duration),
    /// TLS cannot be set up for the upstream.
    #[error("TLS cannot be set up")]
    Tls(#[source] TlsError),
    /// The TLS handshake failed.
    #[error("the TLS handshake failed")]
    Handshake(#[source] io::Error),
    /// The route demands HTTP/2 and the upstream did not choose it.
    #[error("the upstream does not offer HTTP/2")]
    NotHttp2,
    /// An HTTP/1.1 connection cannot be set up.
    #[error("HTTP/1.1 cannot be spoken on the connection")]
    Http1(#[source] hyper::Error),
    /// The HTTP/2 connection ended before it could carry a request.
    #[error("the upstream ended the HTTP/2 connection before it could be used")]
    Http2(#[source] Option<hyper::Error>),
    /// New connections kept ending before a request could be sent on them.
    #[error("the upstream closes new connections at once")]
    ClosedAtOnce,
    /// The process is ending.
    #[error("the attempt to connect was abandoned")]
    Abandoned,
}

impl SendError {
    /// The code the agent gets.
    pub fn code(&self) -> Code {
        match self {
            Self::Connect(error) => match **error {
                ConnectError::Refused(AddressError::OwnListener)
                | ConnectError::Egress(EgressError::Refused(AddressError::OwnListener)) => {
                    Code::LoopDetected
                }
                ConnectError::Refused(_) => Code::UpstreamRefusedAddress,
                ConnectError::Timeout(_) => Code::UpstreamTimeout,
                ConnectError::Resolve(_)
                | ConnectError::Io(_)
                | ConnectError::Egress(_)
                | ConnectError::Tls(_)
                | ConnectError::Handshake(_)
                | ConnectError::NotHttp2
                | ConnectError::Http1(_)
                | ConnectError::Http2(_)
                | ConnectError::ClosedAtOnce
                | ConnectError::Abandoned => Code::UpstreamUnreachable,
            },
            Self::Unanswered { .. } | Self::BadAnswer(_) | Self::UnaskedUpgrade => {
                Code::UpstreamUnreachable
            }
            Self::RequestBody(_) | Self::Authority(_) | Self::NoHost => Code::BadRequest,
            Self::Late(_) => Code::UpstreamTimeout,
        }
    }

    /// What the agent is told: the cause, without addresses.
    pub fn detail(&self) -> Cow<'static, str> {
        match self {
            Self::Connect(error) => error.detail(),
            Self::Unanswered { .. } => {
                "the upstream closed the connection before it answered".into()
            }
            Self::BadAnswer(error) if error.is_incomplete_message() => {
                "the upstream broke off in the middle of its answer's head".into()
            }
            Self::BadAnswer(_) => "the upstream's answer is malformed or its head too large".into(),
            Self::UnaskedUpgrade => "the upstream switched protocols without being asked".into(),
            Self::RequestBody(_) => "the request's body broke off before its end".into(),
            Self::Authority(_) => "the request's Host is not a valid host and port".into(),
            Self::NoHost => "the request has no Host".into(),
            Self::Late(field) => {
                format!("the upstream did not answer within the route's {field}").into()
            }
        }
    }

    /// True if the request may be sent once more, provided that its body can: nothing was sent; or the connection had
    /// been in use before and ended without a byte of an answer; or [`is_unprocessed`](Self::is_unprocessed).
    ///
    /// In the second case the upstream may have acted all the same. Whether that matters is the caller's to judge by
    /// the method.
    pub fn may_be_repeated(&self) -> bool {
        match self {
            Self::Unanswered { source, reused } => {
                // A stream that was reset tells by its reason, whatever its connection did before.
                let reset = h2_of(source).is_some_and(h2::Error::is_reset);
                (*reused && !reset) || self.is_unprocessed()
            }
            other => other.nothing_sent(),
        }
    }

    /// True if the upstream said over HTTP/2 that it did nothing about the request (RFC 9113 section 8.7).
    pub fn is_unprocessed(&self) -> bool {
        let Self::Unanswered { source, .. } = self else {
            return false;
        };
        h2_of(source).is_some_and(|error| {
            let refused = error.is_reset() && error.reason() == Some(h2::Reason::REFUSED_STREAM);
            // Only streams above the last one that GOAWAY names end in it.
            error.is_remote() && (refused || error.is_go_away())
        })
    }

    /// True if not a byte of the request can have reached the upstream, so that sending it again is always safe.
    pub fn nothing_sent(&self) -> bool {
        match self {
            Self::Connect(_) | Self::Authority(_) | Self::NoHost => true,
            Self::Unanswered { .. }
            | Self::BadAnswer(_)
            | Self::UnaskedUpgrade
            | Self::Late(_)
            | Self::RequestBody(_) => false,
        }
    }
}

impl From<ConnectError> for SendError {
    fn from(error: ConnectError) -> Self {
        Self::Connect(Arc::new(error))
    }
}

impl From<SendError> for ProxyError {
    /// The agent gets [`SendError::detail`], the log the whole chain of causes.
    fn from(error: SendError) -> Self {
        Self::new(error.code(), error.detail()).internal(chain(&error))
    }
}

impl ConnectError {
    fn detail(&self) -> Cow<'static, str> {
        match self {
            Self::Resolve(_) => "the upstream's host name cannot be resolved".into(),
            Self::Refused(reason) => reason.to_string().into(),
            Self::Io(error) => reason_of(error)
                .unwrap_or("the upstream cannot be connected to")
                .into(),
            Self::Egress(error) => error.detail(),
            Self::Timeout(limit) => {
                format!("no connection to the upstream within {limit:?}").into()
            }
            Self::Tls(error) => error.to_string().into(),
            Self::Handshake(error) => tls::explain(error, Peer::Upstream),
            Self::NotHttp2 => {
                "the route demands HTTP/2 and the upstream does not offer it; set protocol: Auto"
                    .into()
            }
            Self::Http1(_) => "HTTP/1.1 cannot be spoken with the upstream".into(),
            Self::Http2(_) => {
                "the upstream ended the HTTP/2 connection before it could be used".into()
            }
            Self::ClosedAtOnce => "the upstream closes new connections at once".into(),
            Self::Abandoned => "the sidecar is shutting down".into(),
        }
    }
}

/// Why no address accepted a connection, where the system says more than that.
pub(super) fn reason_of(error: &io::Error) -> Option<&'static str> {
    Some(match error.kind() {
        io::ErrorKind::ConnectionRefused => "connection refused",
        io::ErrorKind::HostUnreachable => "no route to the host",
        io::ErrorKind::NetworkUnreachable => "the network is unreachable",
        io::ErrorKind::ConnectionReset => "connection reset while connecting",
        io::ErrorKind::TimedOut => "the host does not answer",
        io::ErrorKind::PermissionDenied => "connecting is not permitted here (network policy?)",
        io::ErrorKind::AddrNotAvailable => "no local port or address to connect from",
        _ => return None,
    })
}

fn h2_of(error: &hyper::Error) -> Option<&h2::Error> {
    error.source()?.downcast_ref()
}

fn chain(error: &dyn StdError) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
