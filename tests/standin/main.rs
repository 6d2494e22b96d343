//! What agents' requests need beside the sidecar, as programs for pods: a gateway or broker, and an HTTPS upstream.
//!
//! All read the same file of credentials, a JSON object of access tokens by connection id. The gateway hands them out
//! as the published one does, to whoever asks; with a key file only to who shows the key. The broker wants a client
//! certificate. The upstream answers 401 to a request without one of them, and says of every other one which connection
//! it came with:
//!
//! | path | answer |
//! | --- | --- |
//! | `/echo`, and whatever is below it | the request's headers, credential included |
//! | those of [`nexus_tests::upstream`] | as there |
//! | anything else | the connection, host, method and path as JSON |

#![allow(
    clippy::expect_used,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a stand-in ends at the first surprise, and prints what it was asked"
)]

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use clap::{Parser, Subcommand};
use nexus_tests::broker::{Access, Answer, Broker, Front};
use nexus_tests::tls::{server_for_clients_of, server_of};
use nexus_tests::upstream::{Refusal, Seen, Upstream};
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};

/// Paths that the test suite's upstream answers in its own way.
const SPECIAL: [&str; 5] = ["/sse/", "/download/", "/sink", "/hang", "/status/"];

#[derive(Debug, Parser)]
struct Arguments {
    #[command(subcommand)]
    role: Role,
    /// Where it listens.
    #[arg(long, global = true, default_value = "0.0.0.0:8443")]
    listen: SocketAddr,
    /// Folder of `tls.crt` and `tls.key`.
    #[arg(long, global = true, default_value = "/etc/standin/tls")]
    tls: PathBuf,
    /// Access tokens by connection id.
    #[arg(
        long,
        global = true,
        default_value = "/etc/standin/credentials/tokens.json"
    )]
    tokens: PathBuf,
}

#[derive(Debug, Subcommand)]
enum Role {
    /// The REST gateway.
    Gateway {
        /// What callers have to show as `X-API-Key`. Without it the gateway asks for nothing, as the published one.
        #[arg(long)]
        api_key_file: Option<PathBuf>,
    },
    /// The broker, for callers with a certificate.
    Broker {
        /// The authority of their certificates, in PEM.
        #[arg(long)]
        client_ca_file: PathBuf,
    },
    /// An API that wants a token.
    Upstream,
}

#[tokio::main]
async fn main() {
    let arguments = Arguments::parse();
    let text = std::fs::read_to_string(&arguments.tokens).expect("a file of tokens");
    let tokens: HashMap<String, String> = serde_json::from_str(&text).expect("tokens by id");
    let mut terminated = signal(SignalKind::terminate()).unwrap();
    match arguments.role {
        Role::Gateway { api_key_file } => {
            let api_key = api_key_file.map(|file| {
                let text = std::fs::read_to_string(file).expect("a file with a key");
                text.trim().to_owned()
            });
            let bearer = None;
            let access = Access { api_key, bearer };
            let (certificate, key) = pair(&arguments.tls);
            let tls = server_of(&certificate, &key, &["http/1.1"]);
            let gateway = Broker::serve(arguments.listen, Front::Gateway, access, tls).await;
            hand_out(&gateway, &tokens);
            terminated.recv().await;
        }
        Role::Broker { client_ca_file } => {
            let clients = std::fs::read_to_string(client_ca_file).expect("an authority");
            let (certificate, key) = pair(&arguments.tls);
            let tls = server_for_clients_of(&certificate, &key, &clients);
            let access = Access::default();
            let broker = Broker::serve(arguments.listen, Front::Broker, access, tls).await;
            hand_out(&broker, &tokens);
            terminated.recv().await;
        }
        Role::Upstream => {
            let connections: HashMap<String, String> = tokens
                .into_iter()
                .map(|(id, token)| (format!("Bearer {token}"), id))
                .collect();
            let (certificate, key) = pair(&arguments.tls);
            let tls = server_of(&certificate, &key, &["h2", "http/1.1"]);
            let upstream = Upstream::builder()
                .at(arguments.listen)
                .with(tls)
                .forgetful()
                .gate(move |seen| judge(&connections, seen))
                .start()
                .await;
            println!("listening {}", upstream.url());
            terminated.recv().await;
        }
    }
}

/// Lets a gateway or broker answer with these tokens, and print what callers show, for tests that judge it. The tokens
/// among that live for minutes.
fn hand_out(broker: &Broker, tokens: &HashMap<String, String>) {
    broker.observe(|id, call| {
        let shown = json!({
            "connection": id,
            "authorization": call.authorization,
            "apiKey": call.api_key,
            "clientCertificate": call.client_certificate.is_some(),
        });
        println!("{shown}");
    });
    for (id, token) in tokens {
        broker.set(id, Answer::oauth2(token));
    }
    println!("listening {}", broker.url());
}

/// The server's certificate and its key.
fn pair(folder: &Path) -> (String, String) {
    let read = |name| std::fs::read_to_string(folder.join(name)).expect("a certificate and a key");
    (read("tls.crt"), read("tls.key"))
}

/// Says in the log who asked, which is what a test believes: an answer has passed the sidecar.
fn judge(connections: &HashMap<String, String>, seen: &Seen) -> Option<Refusal> {
    let credentials = seen.values("authorization");
    let connection = match credentials.as_slice() {
        [one] => connections.get(*one),
        _ => None,
    };
    let facts = json!({
        "connection": connection,
        "host": seen.authority,
        "method": seen.method,
        "target": seen.target,
    });
    println!("{facts}");
    if connection.is_none() {
        return Some(
            Refusal::new(401, "no credential of ours\n").header("www-authenticate", "Bearer"),
        );
    }
    if SPECIAL.iter().any(|path| seen.target.starts_with(path)) {
        return None;
    }
    let answer = if seen.target.starts_with("/echo") {
        json!(seen.headers)
    } else {
        facts
    };
    let json = Refusal::new(200, answer.to_string());
    Some(json.header("content-type", "application/json"))
}
