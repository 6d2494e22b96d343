//! Debian's tinyproxy as the proxy of a corporate network.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use crate::clients;
use crate::wait;

/// Where its connections come from, so that an upstream can tell them.
pub const OUTGOING: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 3);

/// A running tinyproxy. It is killed when this is dropped.
#[derive(Debug)]
pub struct Tinyproxy {
    child: Child,
    addr: SocketAddr,
    folder: TempDir,
}

impl Tinyproxy {
    /// Starts one that lets in who knows `user` and `password`.
    ///
    /// # Panics
    ///
    /// When it ends instead of listening.
    pub async fn start(user: &str, password: &str) -> Self {
        // It cannot pick a port by itself, and another process may be faster.
        for _ in 0..5 {
            if let Some(started) = Self::try_start(user, password).await {
                return started;
            }
        }
        panic!("tinyproxy does not listen");
    }

    async fn try_start(user: &str, password: &str) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let addr = free.local_addr().unwrap();
        drop(free);
        let log = folder.path().join("log");
        let config = folder.path().join("tinyproxy.conf");
        let lines = [
            format!("Port {}", addr.port()),
            format!("Listen {}", addr.ip()),
            format!("Bind {OUTGOING}"),
            format!("LogFile \"{}\"", log.display()),
            "LogLevel Connect".to_owned(),
            "Allow 127.0.0.1".to_owned(),
            format!("BasicAuth {user} {password}"),
        ];
        std::fs::write(&config, lines.join("\n")).unwrap();
        let child = Command::new(clients::tinyproxy())
            .args(["-d", "-c"])
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut started = Self {
            child,
            addr,
            folder,
        };
        wait::until("tinyproxy to listen", || {
            match started.child.try_wait().unwrap() {
                Some(_) => Some(false),
                None => TcpStream::connect(addr).is_ok().then_some(true),
            }
        })
        .await
        .then_some(started)
    }

    /// What `--egress-proxy` takes.
    pub fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// The request lines it got so far.
    ///
    /// # Panics
    ///
    /// When its log cannot be read.
    pub fn requests(&self) -> Vec<String> {
        std::fs::read_to_string(self.log_file())
            .unwrap()
            .lines()
            .filter_map(|line| line.split_once("Request (file descriptor "))
            .filter_map(|(_, rest)| rest.split_once("): "))
            .map(|(_, request)| request.to_owned())
            .collect()
    }

    fn log_file(&self) -> PathBuf {
        self.folder.path().join("log")
    }
}

impl Drop for Tinyproxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
