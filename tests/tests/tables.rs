//! The compiled table that the operator publishes: read plain and compressed, followed across revisions, and never
//! taken when it is older, newer than the reader, or broken.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

use std::path::Path;
use std::time::Duration;

use nexus_crds::table::{RouteTable, TableRoute};
use nexus_tests::broker::{Answer, Broker};
use nexus_tests::connection;
use nexus_tests::sidecar::Sidecar;
use nexus_tests::upstream::Upstream;
use nexus_tests::wait;
use serde_json::json;

const FILE: &str = "routes.json";

struct Stage {
    broker: Broker,
    upstream: Upstream,
}

impl Stage {
    async fn set() -> Self {
        let broker = Broker::gateway().await;
        broker.set(&connection(1), Answer::oauth2("token-by-a-table"));
        Self {
            broker,
            upstream: Upstream::start().await,
        }
    }

    fn route(&self, provider: &str) -> TableRoute {
        serde_json::from_value(json!({
            "name": provider,
            "provider": provider,
            "upstream": {
                "url": self.upstream.url(),
                "allowInsecure": true,
                "allowPrivateAddresses": true,
            },
            "connections": [{"id": connection(1)}],
        }))
        .unwrap()
    }

    fn table(&self, revision: u64, providers: &[&str]) -> RouteTable {
        let routes = providers
            .iter()
            .map(|provider| self.route(provider))
            .collect();
        let mut table = RouteTable::new("agents", routes);
        table.revision = revision;
        table
    }

    async fn serve(&self, table: &RouteTable) -> Sidecar {
        let builder = Sidecar::run().control(&self.broker);
        write(&builder.routes_folder(), table.encode().unwrap().as_bytes());
        builder.start().await
    }
}

fn write(folder: &Path, bytes: &[u8]) {
    let new = folder.join(".new");
    std::fs::write(&new, bytes).unwrap();
    std::fs::rename(new, folder.join(FILE)).unwrap();
}

async fn outcome(sidecar: &Sidecar, provider: &str) -> (u16, String) {
    let answer = sidecar.agent().get("/").provider(provider).send().await;
    (answer.status, answer.error().to_owned())
}

async fn eventually(sidecar: &Sidecar, provider: &str, status: u16) {
    wait::within(&format!("{provider} to answer {status}"), async {
        while outcome(sidecar, provider).await.0 != status {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_is_served_and_followed_to_an_empty_one() {
    let stage = Stage::set().await;
    let sidecar = stage.serve(&stage.table(7, &["first"])).await;
    assert_eq!(outcome(&sidecar, "first").await.0, 200);
    let ready = sidecar.admin().get("/readyz").send().await.json();
    assert_eq!(
        (ready["revision"].as_u64(), ready["routes"].as_u64()),
        (Some(7), Some(1))
    );

    let next = stage.table(8, &["second"]).encode().unwrap();
    write(&sidecar.routes_folder(), next.as_bytes());
    eventually(&sidecar, "second", 200).await;
    assert_eq!(
        outcome(&sidecar, "first").await,
        (404, "provider_unknown".to_owned())
    );

    let empty = stage.table(9, &[]).encode().unwrap();
    write(&sidecar.routes_folder(), empty.as_bytes());
    eventually(&sidecar, "second", 404).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_table_is_compressed_and_served() {
    let stage = Stage::set().await;
    let providers: Vec<String> = (0..3000)
        .map(|number| format!("provider-{number}"))
        .collect();
    let names: Vec<&str> = providers.iter().map(String::as_str).collect();
    let table = stage.table(1, &names);
    assert!(
        table
            .encode()
            .unwrap()
            .as_bytes()
            .starts_with(&[0x1f, 0x8b])
    );
    let sidecar = stage.serve(&table).await;
    assert_eq!(outcome(&sidecar, "provider-2999").await.0, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_older_newer_or_broken_table_leaves_the_last_good_one() {
    let stage = Stage::set().await;
    let sidecar = stage.serve(&stage.table(100, &["good"])).await;
    let older = stage.table(99, &["older"]);
    let mut newer = serde_json::to_value(stage.table(101, &["newer"])).unwrap();
    newer["format"] = json!(1000);
    newer["minReader"] = json!(1000);
    let whole = stage.table(102, &["cut"]).encode().unwrap();
    for (what, bytes) in [
        ("older", older.encode().unwrap().as_bytes().to_vec()),
        ("newer", newer.to_string().into_bytes()),
        (
            "cut",
            whole.as_bytes()[..whole.as_bytes().len() / 2].to_vec(),
        ),
        ("damaged gzip", [&[0x1f, 0x8b][..], b"nonsense"].concat()),
    ] {
        let before = sidecar.stderr().len();
        write(&sidecar.routes_folder(), &bytes);
        wait::until(&format!("{what} to be reported"), || {
            let log = sidecar.stderr();
            log[before..]
                .iter()
                .any(|line| line.contains("last good"))
                .then_some(())
        })
        .await;
        assert_eq!(outcome(&sidecar, "good").await.0, 200, "{what}");
        assert_eq!(
            outcome(&sidecar, what.split(' ').next().unwrap()).await.0,
            404,
            "{what}"
        );
        let ready = sidecar.admin().get("/readyz").send().await.json();
        assert_eq!(ready["revision"], 100, "{what}");
        assert!(ready["lastError"].is_string(), "{what}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_route_that_needs_a_newer_sidecar_is_not_ready_and_the_others_serve() {
    let stage = Stage::set().await;
    let mut table = stage.table(1, &["plain", "ahead"]);
    table.routes[1].requires = vec!["a-feature-of-the-future".to_owned()];
    table.hash = table.content_hash();
    let sidecar = stage.serve(&table).await;
    assert_eq!(outcome(&sidecar, "plain").await.0, 200);
    assert_eq!(
        outcome(&sidecar, "ahead").await,
        (503, "not_ready".to_owned())
    );
    assert_eq!(stage.upstream.seen().len(), 1);
}
