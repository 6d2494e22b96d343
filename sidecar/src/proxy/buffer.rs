//! Bodies that are hashed have to be in memory before anything is sent: bounded for each request and for the process.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::{Body, Incoming};
use nexus_crds::matcher::CompiledRoute;
use tokio::time::timeout;

use super::body::RequestBody;
use crate::error::{Code, ProxyError};
use crate::record::chain;

/// Signed bodies held in memory by the whole process, in bytes.
const SIGNED_BYTES: u64 = 64 * 1024 * 1024;

/// Reads a whole body, up to the route's `limits.maxSignedBodyBytes`. `signed` counts what all requests hold.
pub async fn read(
    mut body: Incoming,
    signed: &Arc<AtomicU64>,
    route: &CompiledRoute,
) -> Result<RequestBody, ProxyError> {
    let limit = route.limits.max_signed_body_bytes;
    let too_large = || {
        ProxyError::new(
            Code::BodyTooLarge,
            format!(
                "the credential signs the body, which may be at most {limit} bytes (limits.maxSignedBodyBytes)"
            ),
        )
    };
    if body.size_hint().lower() > limit {
        return Err(too_large());
    }
    if body.is_end_stream() {
        return Ok(RequestBody::Empty);
    }
    let mut held = SignedBytes {
        budget: Arc::clone(signed),
        bytes: 0,
    };
    let mut collected = BytesMut::new();
    while let Some(frame) = within(route.timeouts.idle, body.frame()).await? {
        let frame = frame.map_err(|error| {
            ProxyError::new(
                Code::BadRequest,
                "the request body broke off or is malformed",
            )
            .internal(chain(&error))
        })?;
        let Ok(data) = frame.into_data() else {
            continue;
        };
        if (collected.len() + data.len()) as u64 > limit {
            return Err(too_large());
        }
        held.take(data.len() as u64)?;
        collected.extend_from_slice(&data);
    }
    Ok(RequestBody::Full(Some(Bytes::from_owner(HeldBytes {
        bytes: collected,
        _held: held,
    }))))
}

/// The next piece of a body that is read before anything is sent; an agent that goes silent must not hold its share of
/// the memory for ever.
async fn within<T>(
    idle: Option<Duration>,
    piece: impl Future<Output = T>,
) -> Result<T, ProxyError> {
    let Some(idle) = idle else {
        return Ok(piece.await);
    };
    timeout(idle, piece).await.map_err(|_| {
        ProxyError::new(
            Code::BadRequest,
            "no more of the request body came within the route's timeouts.idle",
        )
    })
}

/// A share of the memory for signed bodies, given back on drop.
struct SignedBytes {
    budget: Arc<AtomicU64>,
    bytes: u64,
}

impl SignedBytes {
    fn take(&mut self, bytes: u64) -> Result<(), ProxyError> {
        self.bytes += bytes;
        if self.budget.fetch_add(bytes, Ordering::Relaxed) + bytes > SIGNED_BYTES {
            return Err(ProxyError::new(
                Code::Overloaded,
                "too many bodies are being signed at once; try again",
            )
            .retry_after(Duration::from_secs(1)));
        }
        Ok(())
    }
}

impl Drop for SignedBytes {
    fn drop(&mut self) {
        self.budget.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// Bytes that hold their share until the last reference is gone.
struct HeldBytes {
    bytes: BytesMut,
    _held: SignedBytes,
}

impl AsRef<[u8]> for HeldBytes {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_body_that_is_read_first_may_not_go_silent() {
        let idle = Some(Duration::from_secs(1));
        assert_eq!(within(idle, async { 7 }).await.unwrap(), 7);
        let silent = within(idle, std::future::pending::<()>()).await;
        assert_eq!(silent.unwrap_err().code, Code::BadRequest);
    }
}
