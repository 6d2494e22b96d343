//! The soak: one sidecar, many connections with short-lived tokens, a control plane that fails and goes away, an
//! upstream that rejects at random, and a judge that looks at every request that arrives.
//!
//! `cargo xtask soak` builds the sidecar and runs this.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a soak ends at the first surprise, and prints what it counted"
)]

mod judge;
mod load;
mod memory;
mod report;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Parser;
use nexus_tests::broker::{Broker, Failure, Front, Outage, Provider};
use nexus_tests::connection;
use nexus_tests::route::Route;
use nexus_tests::sidecar::Sidecar;
use nexus_tests::upstream::Upstream;
use serde_json::json;
use tokio::sync::watch;

use crate::judge::Judge;
use crate::load::Tally;
use crate::memory::Memory;
use crate::report::Report;

/// Routes, each with the same tenants, so that either part of the address could be mixed up.
const ROUTES: u32 = 4;
/// Tenants of each route.
const TENANTS: u32 = 50;
/// Agents at work at once.
const AGENTS: u64 = 32;
/// Life of an access token.
const LIFE: Duration = Duration::from_secs(5);
/// Time a provider takes for a refresh.
const PROVIDER_LATENCY: Duration = Duration::from_millis(20);
/// Share of control-plane calls that fail.
const FAILING: f64 = 0.2;
/// And how.
const FAILURES: [Failure; 5] = [
    Failure::Status(500),
    Failure::Status(502),
    Failure::Status(503),
    Failure::Cut,
    Failure::Slow(Duration::from_millis(1500)),
];
/// Once everything is well again, every connection must be served within this: twice the sidecar's longest pause.
const RECOVERY: Duration = Duration::from_mins(1);
/// Replay buffer of the routes, in bytes.
const BUFFER: usize = 64 << 10;
/// Beginning of every access token, by which one is recognised in an answer.
const TOKEN_PREFIX: &str = "at-soak-";

/// Runs the soak against the sidecar in `NEXUS_SIDECAR_BIN`.
#[derive(Debug, Parser)]
struct Arguments {
    /// How long, in minutes.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..))]
    minutes: u64,
    /// Of everything that is left to chance.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// When what happens.
#[derive(Clone, Copy, Debug)]
struct Schedule {
    total: Duration,
    /// Length of each outage.
    outage: Duration,
    /// When they begin.
    outages: [(Duration, Outage); 2],
    /// From here on memory must not grow.
    warm: Duration,
}

impl Schedule {
    fn new(minutes: u64) -> Self {
        let total = Duration::from_mins(minutes);
        Self {
            total,
            outage: Duration::from_secs(30).min(total / 8),
            outages: [
                (total * 3 / 10, Outage::Refused),
                (total * 6 / 10, Outage::Hangs),
            ],
            warm: total / 4,
        }
    }
}

/// Connection of a tenant of a route.
fn connection_of(route: u32, tenant: u32) -> String {
    connection(1 + route * TENANTS + tenant)
}

#[tokio::main(worker_threads = 2)]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    assert!(
        std::env::var_os("NEXUS_SIDECAR_BIN").is_some(),
        "NEXUS_SIDECAR_BIN names the sidecar to run; `cargo xtask soak` builds one and sets it"
    );
    let report = soak(Schedule::new(arguments.minutes), arguments.seed).await;
    println!("{report}");
    let failures = report.failures();
    for failure in &failures {
        println!("FAILED: {failure}");
    }
    if failures.is_empty() {
        println!("passed, seed {}", arguments.seed);
        ExitCode::SUCCESS
    } else {
        println!("seed {}", arguments.seed);
        ExitCode::FAILURE
    }
}

async fn soak(schedule: Schedule, seed: u64) -> Report {
    let world = World::start(seed).await;
    let (stop, stopped) = watch::channel(false);
    let mut agents = tokio::task::JoinSet::new();
    for number in 0..AGENTS {
        let agent = world.agent(seed.wrapping_mul(1000).wrapping_add(number));
        agents.spawn(agent.run(stopped.clone()));
    }
    let memory = memory::watch(world.sidecar.pid(), schedule.warm, stopped);
    let memory = tokio::spawn(memory);
    println!(
        "{} connections, {AGENTS} agents, {:?}; control plane gone for {:?} at {:?}",
        ROUTES * TENANTS,
        schedule.total,
        schedule.outage,
        schedule.outages.map(|(at, _)| at),
    );
    world.suffer(schedule).await;
    stop.send_replace(true);
    while let Some(agent) = agents.join_next().await {
        agent.expect("an agent does not panic");
    }
    let memory: Memory = memory.await.expect("reading memory does not panic");
    let unserved = world.recover(seed).await;
    let said = world.sidecar.stderr();
    Report::new(
        &world.broker,
        &world.judge,
        &world.tally,
        memory,
        unserved,
        &said,
    )
}

/// Everything that takes part, but for the load.
struct World {
    broker: Arc<Broker>,
    judge: Arc<Judge>,
    tally: Arc<Tally>,
    sidecar: Sidecar,
    started: Instant,
    _upstream: Upstream,
}

impl World {
    async fn start(seed: u64) -> Self {
        let broker = Arc::new(Broker::start(Front::Broker, None).await);
        for number in 0..ROUTES * TENANTS {
            let provider = Provider::new("soak").life(LIFE).latency(PROVIDER_LATENCY);
            broker.connect(&connection(1 + number), provider);
        }
        broker.unreliable(seed, FAILING, &FAILURES);
        let started = Instant::now();
        let judge = Arc::new(Judge::new(Arc::clone(&broker), started, seed));
        let gate = Arc::clone(&judge);
        let upstream = Upstream::builder()
            .forgetful()
            .gate(move |seen| gate.judge(seen))
            .start()
            .await;
        let mut builder = Sidecar::run().control(&broker).arg("--access-log=off");
        for route in 0..ROUTES {
            builder = builder.route(&manifest(route, &upstream.url()));
        }
        Self {
            sidecar: builder.start().await,
            broker,
            judge,
            tally: Arc::default(),
            started,
            _upstream: upstream,
        }
    }

    fn agent(&self, seed: u64) -> load::Agent {
        let (judge, tally) = (Arc::clone(&self.judge), Arc::clone(&self.tally));
        load::Agent::new(self.sidecar.proxy_addr(), seed, judge, tally)
    }

    /// The outages, until the end of the schedule.
    async fn suffer(&self, schedule: Schedule) {
        for (at, outage) in schedule.outages {
            tokio::time::sleep_until((self.started + at).into()).await;
            self.tally.outage(true);
            self.broker.outage(outage).await;
            tokio::time::sleep(schedule.outage).await;
            self.broker.outage(Outage::None).await;
            self.tally.outage(false);
            let seconds = self.started.elapsed().as_secs();
            println!("{seconds:>4} s: the control plane is back");
        }
        tokio::time::sleep_until((self.started + schedule.total).into()).await;
    }

    /// Asks every connection when nothing goes wrong any more. How many were not served.
    async fn recover(&self, seed: u64) -> usize {
        self.broker.reliable();
        let mut agents = tokio::task::JoinSet::new();
        for route in 0..ROUTES {
            for tenant in 0..TENANTS {
                agents.spawn(self.agent(seed).insist(route, tenant, RECOVERY));
            }
        }
        let served = agents.join_all().await;
        served.iter().filter(|served| !**served).count()
    }
}

fn manifest(route: u32, upstream: &str) -> Route {
    let mut manifest = Route::new(&format!("p{route}"), upstream).with(
        "replay",
        json!({"statusCodes": [401], "maxBodyBytes": BUFFER}),
    );
    for tenant in 0..TENANTS {
        let id = connection_of(route, tenant);
        manifest = manifest.tenant(&format!("tenant-{tenant}"), &id);
    }
    manifest
}
