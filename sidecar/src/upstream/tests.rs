//! The pools against real servers on loopback: hyper's, and raw sockets for what hyper would not do.

mod connecting;
mod egress;
mod egress_failures;
mod frames;
mod http1;
mod http2;
mod keepalive;
mod names;
mod over_tls;
mod repeating;
mod support;
