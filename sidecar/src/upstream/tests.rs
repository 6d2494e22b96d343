//! The pools against real servers on loopback: hyper's, and raw sockets for what hyper would not do.

mod connecting;
mod http1;
mod http2;
mod over_tls;
mod support;
