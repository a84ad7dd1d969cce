//! Which fill goes first, and what operators see of fills.

use bytes::Bytes;
use http::{Method, StatusCode};
use stopover::oci::{Algorithm, Digest, Repository};
use stopover::operate::fills::{FillState, FillStatus};
use stopover::ports::{Job, Priority};
use stopover::pull::Want;
use support::on_both_columns;
use support::scripted::{Fault, Scripted};
use support::world::{Answer, Column, World, open, until};

on_both_columns!(a_fill_that_was_given_up_is_shown_with_its_reason_and_retried,);

async fn a_fill_that_was_given_up_is_shown_with_its_reason_and_retried(column: Column) {
    let world = World::on(column).await;
    let image = world.upstream.image("team/app", "1", &[b"layer"]);
    let digest = &image.blobs[1].0;
    // Embedded, what may pass is tried again for minutes; a queue has only that given up.
    let (status, reason) = if column == Column::Embedded { (404, "does not have") } else { (500, "500") };
    world.upstream.fault(&format!("blobs/{digest}"), Fault::Status(status, vec![], String::new()));
    world.get("/v2/test.local/team/app/manifests/1").await;
    world.settled().await;
    let [failed] = &world.cache.operate.fill_reports().await.unwrap().fills[..] else {
        panic!("one is missing at upstream")
    };
    assert_eq!((&failed.digest, failed.state, failed.attempts), (digest, FillState::Failed, 1));
    assert_eq!(failed.repository.as_deref(), Some("test.local/team/app"));
    assert!(failed.failure.as_deref().is_some_and(|failure| failure.contains(reason)), "{failed:?}");
    assert_eq!(world.cache.operate.fill_report(digest).await.unwrap().as_ref(), Some(failed));
    world.upstream.heal();
    assert_eq!(world.cache.core.storage.fills.retry().await.unwrap(), 1);
    world.settled().await;
    assert_eq!(world.cache.operate.fill_reports().await.unwrap().fills, []);
    let stored = world.cache.operate.fill_report(digest).await.unwrap().unwrap();
    assert_eq!((stored.state, stored.size, stored.written), (FillState::Stored, 5, 5));
    assert_eq!(world.cache.core.storage.fills.retry().await.unwrap(), 0, "nothing is left to retry");
}

/// SQS knows no order: there, what nobody waits for has a queue of its own. Nor is anybody an operator over HTTP there.
mod alone {
    use super::*;

    /// Puts a blob of `size` bytes at upstream. Its digest is found by its name and size in [`fills_begun`].
    fn blob(world: &World, name: &str, size: usize, priority: Priority) -> Job {
        let bytes = Bytes::from(format!("{name} {priority:?} ").repeat(size)[..size].to_owned());
        let digest = Digest::of(Algorithm::Sha256, &bytes);
        world.upstream.blob(name, &digest, &bytes);
        Job { repository: repository(name), digest, size: size as u64, priority, payer: None }
    }

    /// A world with one place, which a fill has taken that ends only when upstream heals.
    async fn occupied() -> World {
        let world = World::plan(Column::Embedded).upstream("fills = 1").start().await;
        let first = blob(&world, "first", 100, Priority::Refresh);
        world.upstream.fault("/first/", Fault::Stalled);
        world.cache.core.storage.fills.request(&[first]).await.unwrap();
        until(|| world.upstream.count("/blobs/") == 1).await;
        world
    }

    /// Lets everything be filled that waits, and says in which order.
    async fn fills_begun(world: &World, jobs: &[Job]) -> Vec<(String, u64)> {
        world.upstream.forget_requests();
        world.upstream.heal();
        world.settled().await;
        let of = |line: String| {
            let job = jobs.iter().find(|job| line.ends_with(job.digest.as_str())).expect("it was requested");
            (job.repository.name.to_string(), job.size)
        };
        world.upstream.requests().into_iter().map(|seen| of(seen.line)).collect()
    }

    fn expected(order: &[(&str, u64)]) -> Vec<(String, u64)> {
        order.iter().map(|(name, size)| ((*name).to_owned(), *size)).collect()
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn interactive_fills_go_before_prefetch_before_refresh() {
        let world = occupied().await;
        let jobs = [
            blob(&world, "refresh", 30, Priority::Refresh),
            blob(&world, "raised", 60, Priority::Refresh),
            blob(&world, "prefetch", 40, Priority::Prefetch),
            blob(&world, "pulled", 50, Priority::Interactive),
        ];
        world.cache.core.storage.fills.request(&jobs).await.unwrap();
        let raised = Job { priority: Priority::Interactive, ..jobs[1].clone() };
        world.cache.core.storage.fills.request(&[raised]).await.unwrap();
        // Asking again with less urgency changes nothing.
        world.cache.core.storage.fills.request(&jobs[1..2]).await.unwrap();
        let order = fills_begun(&world, &jobs).await;
        // Of the same priority, repositories take turns in the order in which they came.
        assert_eq!(order, expected(&[("pulled", 50), ("raised", 60), ("prefetch", 40), ("refresh", 30)]));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_repository_with_many_fills_does_not_hold_up_another() {
        let world = occupied().await;
        let mut jobs: Vec<Job> = (1..=20).map(|size| blob(&world, "many", size, Priority::Interactive)).collect();
        jobs.push(blob(&world, "one", 1000, Priority::Interactive));
        world.cache.core.storage.fills.request(&jobs).await.unwrap();
        let order = fills_begun(&world, &jobs).await;
        assert_eq!((order.len(), &order[..2]), (21, &expected(&[("many", 1), ("one", 1000)])[..]));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn small_blobs_go_first() {
        let world = occupied().await;
        let jobs = [300, 20, 100].map(|size| blob(&world, "a", size, Priority::Interactive));
        world.cache.core.storage.fills.request(&jobs).await.unwrap();
        assert_eq!(fills_begun(&world, &jobs).await, expected(&[("a", 20), ("a", 100), ("a", 300)]));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn no_more_fills_run_at_an_upstream_than_its_limit() {
        let world = World::plan(Column::Embedded).upstream("fills = 2").start().await;
        let image = world.upstream.image("a", "1", &[b"one", b"two", b"three", b"four and the last"]);
        world.upstream.fault("/blobs/", Fault::Stalled);
        world.get("/v2/test.local/a/manifests/1").await;
        until(|| world.upstream.count("/blobs/") == 2).await;
        let in_state = async |state| {
            let reports = world.cache.operate.fill_reports().await.unwrap().fills;
            reports.iter().filter(|report| report.state == state).count()
        };
        assert_eq!((in_state(FillState::Running).await, in_state(FillState::Waiting).await), (2, 3));
        // A client that waits needs no place.
        let (last, bytes) = &image.blobs[4];
        let path = format!("/v2/test.local/a/blobs/{last}");
        let heal = async {
            until(|| world.upstream.count(last.as_str()) == 1).await;
            assert_eq!((in_state(FillState::Running).await, in_state(FillState::Waiting).await), (3, 2));
            world.upstream.heal();
        };
        let (answer, ()) = tokio::join!(world.get(&path), heal);
        assert_eq!(answer.bytes(), bytes);
        world.settled().await;
        assert_eq!(world.stored_blobs().await.len(), image.blobs.len());
        assert_eq!(world.upstream.count("/blobs/"), image.blobs.len());
    }

    /// A request of an operator of the machine. No other caller may make it, but for the list.
    async fn operator(world: &World, method: Method, path: &str) -> Answer {
        let expected = if path == "/_stopover/fills" { StatusCode::OK } else { StatusCode::FORBIDDEN };
        assert_eq!(world.send_from("127.0.0.1", method.clone(), path).await.status, expected);
        world.operate(method, path, "").await
    }

    fn reports(answer: &Answer) -> Vec<FillStatus> {
        let body: serde_json::Value = serde_json::from_slice(answer.bytes()).unwrap();
        serde_json::from_value(body["fills"].clone()).unwrap()
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn fills_are_shown_to_operators_with_what_has_become_of_them() {
        let world = World::on(Column::Embedded).await;
        let image = world.upstream.image("team/app", "1", &[b"layer"]);
        let digest = &image.blobs[1].0;
        let one = format!("/_stopover/fills/{digest}");
        assert_eq!(operator(&world, Method::GET, &one).await.status, StatusCode::NOT_FOUND);
        world.upstream.fault(&format!("blobs/{digest}"), Fault::Status(404, vec![], String::new()));
        world.get("/v2/test.local/team/app/manifests/1").await;
        world.settled().await;

        let [failed] = &reports(&operator(&world, Method::GET, "/_stopover/fills").await)[..] else {
            panic!("one is missing at upstream")
        };
        assert_eq!((&failed.digest, failed.state), (digest, FillState::Failed));
        let shown: FillStatus = serde_json::from_slice(operator(&world, Method::GET, &one).await.bytes()).unwrap();
        assert_eq!(&shown, failed);

        world.upstream.heal();
        let retried = operator(&world, Method::POST, "/_stopover/fills/retry").await;
        assert_eq!(retried.bytes().as_ref(), br#"{"retried":1}"#);
        world.settled().await;
        assert_eq!(reports(&operator(&world, Method::GET, "/_stopover/fills").await), []);
        let stored: FillStatus = serde_json::from_slice(operator(&world, Method::GET, &one).await.bytes()).unwrap();
        assert_eq!(stored.state, FillState::Stored);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn what_was_given_up_stays_so_after_a_restart_until_it_is_pulled() {
        let upstream = Scripted::start().unwrap();
        let image = upstream.image("a", "1", &[b"layer"]);
        let digest = &image.blobs[1].0;
        upstream.fault(digest.as_str(), Fault::Status(404, vec![], String::new()));
        let data = tempfile::tempdir().unwrap();
        let settings = format!("[upstreams.\"test.local\"]\nurl = \"{}\"", upstream.url());
        let start = async || open(data.path(), &settings).await;
        let local = start().await;
        local.cache.pull.manifest(&repository("a"), &"1".parse().unwrap(), Want::GET).await.unwrap();
        local.settled().await;
        local.stop(std::time::Duration::ZERO).await;
        upstream.heal();
        upstream.forget_requests();
        let local = start().await;
        local.settled().await;
        let reports = local.cache.operate.fill_reports().await.unwrap().fills;
        assert_eq!((reports.len(), reports[0].state), (1, FillState::Failed));
        assert_eq!(upstream.count(digest.as_str()), 0);
        local.cache.pull.blob(&repository("a"), digest, Want::GET).await.unwrap();
        local.settled().await;
        assert_eq!(local.cache.operate.fill_reports().await.unwrap().fills, []);
    }
}

fn repository(name: &str) -> Repository {
    Repository { upstream: "test.local".parse().unwrap(), name: name.parse().unwrap() }
}
