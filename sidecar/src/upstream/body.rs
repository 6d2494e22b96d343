//! An answer's body as it comes from an upstream, which gives back what carried it when its end was read.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use super::h2::OpenStream;

/// The body of an upstream's answer. Its end returns an HTTP/1.1 connection to the pool; dropped before its end it
/// closes that connection, or resets the HTTP/2 stream.
pub struct UpstreamBody {
    incoming: Incoming,
    lease: Option<Lease>,
}

/// What carries a body.
pub(super) enum Lease {
    /// A connection of its own. Boxed once when it was opened, so that lending it allocates nothing.
    Http1(Box<dyn Reusable>),
    /// A stream of a shared connection, which counts as open until this is dropped.
    Http2(Arc<OpenStream>),
}

/// A connection that can carry another request.
pub(super) trait Reusable: Send + Sync {
    /// Gives the connection back to its pool.
    fn give_back(self: Box<Self>);
}

impl UpstreamBody {
    pub(super) fn new(incoming: Incoming, lease: Lease) -> Self {
        Self {
            incoming,
            lease: Some(lease),
        }
    }

    fn ended(&mut self) {
        match self.lease.take() {
            Some(Lease::Http1(connection)) => connection.give_back(),
            Some(Lease::Http2(stream)) => drop(stream),
            None => {}
        }
    }
}

impl Body for UpstreamBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = ready!(Pin::new(&mut self.incoming).poll_frame(cx));
        match &frame {
            Some(Ok(_)) => {}
            Some(Err(_)) => self.lease = None,
            None => self.ended(),
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}

impl Drop for UpstreamBody {
    fn drop(&mut self) {
        // Who knows that nothing is left does not poll again, and need not poll an empty body at all.
        if self.incoming.is_end_stream() {
            self.ended();
        }
    }
}

impl fmt::Debug for UpstreamBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UpstreamBody").finish_non_exhaustive()
    }
}
