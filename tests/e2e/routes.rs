//! A route that `kubectl apply` changes is served by the sidecars that run. Without a relay kubelet brings the table,
//! which may take it 90 seconds.

use std::time::{Duration, Instant};

use libtest_mimic::Trial;
use serde_json::json;

use crate::lab::lab;
use crate::team::{PROVIDER, Reply, SECOND, Team, agent};
use crate::test;

/// Namespaces that change their routes at the same time.
const TEAMS: usize = 5;
/// The longest that kubelet and what is around it may take, on a busy machine.
const BOUND: Duration = Duration::from_secs(150);

/// The tests of this file.
pub(crate) fn tests(list: &mut Vec<Trial>) {
    list.push(test(
        "routes_change_in_running_sidecars",
        routes_change_in_running_sidecars,
    ));
}

fn routes_change_in_running_sidecars() {
    let mut times: Vec<(&str, Duration)> = std::thread::scope(|scope| {
        let teams: Vec<_> = (0..TEAMS).map(|_| scope.spawn(changes)).collect();
        teams
            .into_iter()
            .flat_map(|team| team.join().unwrap())
            .collect()
    });
    times.sort_by_key(|(_, time)| *time);
    assert_eq!(times.len(), 4 * TEAMS);
    let (p50, max) = (times[times.len() / 2].1, times[times.len() - 1].1);
    println!(
        "{} route changes: p50 {p50:.1?}, max {max:.1?}",
        times.len()
    );
    for (what, time) in times {
        println!("    {time:.1?} {what}");
    }
}

/// Four changes, one after another, each with the time from `kubectl apply` to its effect.
fn changes() -> Vec<(&'static str, Duration)> {
    let team = Team::new("live");
    let first = team.route(PROVIDER, "");
    team.start(&agent("agent"));
    let reply = team.served("agent", "/via/upstream/start");
    assert_eq!(reply.connection(), first);
    assert_eq!(
        team.call("agent", "/via/second/start").error(),
        "provider_unknown"
    );
    let mut times = Vec::new();
    let mut change = |what, act: &dyn Fn(), path: &str, done: &dyn Fn(&Reply) -> bool| {
        let start = Instant::now();
        act();
        loop {
            let reply = team.call("agent", path);
            if done(&reply) {
                times.push((what, start.elapsed()));
                break;
            }
            assert!(start.elapsed() < BOUND, "{what}: {reply:?}");
            std::thread::sleep(Duration::from_millis(100));
        }
    };
    let [second, third] = [(); 2].map(|()| lab().connection());
    change(
        "new route",
        &|| team.connect(SECOND, &json!([{"connectionId": second}])),
        "/via/second/new",
        &|reply| reply.status == 200 && reply.connection() == second,
    );
    let changed = json!({
        "metadata": {"name": PROVIDER},
        "spec": {
            "provider": PROVIDER,
            "upstream": {"url": "https://other.services.svc"},
            "connections": [{"connectionId": first}],
        },
    });
    change(
        "changed upstream",
        &|| team.apply_route(&changed),
        "/via/upstream/changed",
        &|reply| reply.status == 200 && reply.body.contains("other.services.svc"),
    );
    change(
        "changed connection",
        &|| team.connect(SECOND, &json!([{"connectionId": third}])),
        "/via/second/changed",
        &|reply| reply.status == 200 && reply.connection() == third,
    );
    change(
        "deleted route",
        &|| {
            team.kubectl(&["delete", "nexusroute", SECOND]).ok();
        },
        "/via/second/gone",
        &|reply| reply.error() == "provider_unknown",
    );
    times
}
