//! CONNECT, and what its answer says.

use std::net::SocketAddr;
use std::pin::pin;

use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::Empty;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::{EgressError, EgressProxy};
use crate::upstream::socket::Socket;

/// Largest head of an answer to CONNECT, in bytes.
const MAX_HEAD: usize = 16 * 1024;

impl EgressProxy {
    /// Asks the proxy, which `stream` is connected to, to connect to `upstream`. The caller bounds the time.
    pub(in crate::upstream) async fn tunnel(
        &self,
        stream: TcpStream,
        upstream: SocketAddr,
    ) -> Result<Socket, EgressError> {
        let request = self.request(upstream).await?;
        let socket = match &self.tls {
            None => Socket::from(stream),
            Some(tls) => tls
                .connector
                .connect(tls.name.clone(), stream)
                .await
                .map_err(EgressError::Handshake)?
                .into(),
        };
        connect(socket, request).await
    }

    async fn request(&self, upstream: SocketAddr) -> Result<Request<Empty<Bytes>>, EgressError> {
        // Without the scope of a link-local address, which means nothing to another host.
        let authority = SocketAddr::new(upstream.ip(), upstream.port()).to_string();
        let mut request = Request::connect(&*authority)
            .header(header::HOST, &*authority)
            .body(Empty::new())
            .map_err(EgressError::Request)?;
        if let Some(file) = &self.credentials {
            let value = file.read_later().await.map_err(EgressError::Credentials)?;
            request
                .headers_mut()
                .insert(header::PROXY_AUTHORIZATION, value);
        }
        Ok(request)
    }
}

async fn connect(socket: Socket, request: Request<Empty<Bytes>>) -> Result<Socket, EgressError> {
    let sent = request.headers().contains_key(header::PROXY_AUTHORIZATION);
    let (mut sender, connection) = http1::Builder::new()
        .max_buf_size(MAX_HEAD)
        .handshake(TokioIo::new(socket))
        .await
        .map_err(EgressError::Answer)?;
    let mut answer = pin!(sender.send_request(request));
    let mut connection = pin!(connection.without_shutdown());
    // A success ends the connection's HTTP in the same breath as it is answered, a refusal does not end it.
    let (answer, ended) = tokio::select! {
        biased;
        answer = &mut answer => (answer, None),
        ended = &mut connection => (answer.await, Some(ended)),
    };
    let status = answer.map_err(EgressError::Answer)?.status();
    match status {
        StatusCode::PROXY_AUTHENTICATION_REQUIRED | StatusCode::UNAUTHORIZED => {
            return Err(EgressError::Unauthorized { status, sent });
        }
        status if !status.is_success() => return Err(EgressError::Status(status)),
        _ => {}
    }
    let ended = match ended {
        Some(ended) => ended,
        None => connection.await,
    };
    let parts = ended.map_err(EgressError::Answer)?;
    Ok(parts.io.into_inner().with_early(parts.read_buf))
}
