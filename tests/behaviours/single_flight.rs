//! However many ask, upstream is asked once: within a process, and among processes by the ledger's lease.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use stopover::cache::Cache;
use stopover::oci::{Reference, Repository};
use stopover::pull::Want;
use stopover::records::tag::LEASE;
use stopover::records::{Lease, ReferenceKey, TagRecord};
use stopover::values::served::Served;
use support::on_both_columns;
use support::scripted::Fault;
use support::world::{Column, World, until};

on_both_columns!(
    a_thousand_cold_pulls_cost_one_get_upstream,
    four_instances_ask_upstream_once,
    a_holder_that_died_is_replaced_after_its_lease,
    a_lease_holder_that_lost_its_lease_cannot_publish,
    what_is_known_is_served_while_another_instance_asks,
    a_check_is_not_answered_by_that_of_another_instance_that_failed,
    ten_thousand_pulls_over_twenty_periods_of_freshness_cost_no_quota,
);

const TAG: &str = "/v2/test.local/a/manifests/1";

fn repository() -> Repository {
    Repository { upstream: "test.local".parse().unwrap(), name: "a".parse().unwrap() }
}

fn tag() -> Reference {
    "1".parse().unwrap()
}

async fn a_thousand_cold_pulls_cost_one_get_upstream(column: Column) {
    let world = World::on(column).await;
    let image = world.upstream.image("a", "1", &[b"layer"]);
    let by_digest = format!("/v2/test.local/a/manifests/{}", image.digest);
    for path in [TAG, &by_digest] {
        for answer in join_all((0..1000).map(|_| world.get(path))).await {
            assert_eq!(answer.bytes(), &image.manifest);
        }
    }
    assert_eq!(world.upstream.count("/manifests/"), 1);
    let other = world.upstream.image("b", "1", &[b"layer"]);
    let path = format!("/v2/test.local/b/manifests/{}", other.digest);
    for answer in join_all((0..1000).map(|_| world.get(&path))).await {
        assert_eq!(answer.bytes(), &other.manifest);
    }
    assert_eq!(world.upstream.count("/v2/b/manifests/"), 1);
}

async fn four_instances_ask_upstream_once(column: Column) {
    let world = World::on(column).await;
    let image = world.upstream.image("a", "1", &[b"layer"]);
    let mut instances: Vec<Arc<Cache>> = Vec::new();
    for _ in 0..4 {
        instances.push(world.another_instance());
    }
    for reference in [tag(), Reference::Digest(image.digest.clone())] {
        let (repository, reference) = (&repository(), &reference);
        let pulls = instances
            .iter()
            .flat_map(|instance| (0..50).map(move |_| instance.pull.manifest(repository, reference, Want::GET)));
        for pulled in join_all(pulls).await {
            assert_eq!(pulled.unwrap().manifest.unwrap().bytes, image.manifest);
        }
    }
    assert_eq!(world.upstream.count("/manifests/"), 1);
}

async fn a_holder_that_died_is_replaced_after_its_lease(column: Column) {
    let world = World::on(column).await;
    let image = world.upstream.image("a", "1", &[b"layer"]);
    let now = world.clock.now();
    let lease = Some(Lease { owner: "the dead".into(), until: now.plus(LEASE) });
    let record = TagRecord { observed: None, previous: None, checked_at: now, fresh_until: now, lease };
    world.cache.core.storage.ledger.swap(&ReferenceKey(&repository(), &tag()), None, &record).await.unwrap();
    let (waiting, ()) = tokio::join!(world.get(TAG), async {
        // Long enough for it to look at the lease; were it not to wait, upstream would have been asked by now.
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert!(world.upstream.requests().is_empty());
        world.clock.advance(LEASE);
    });
    assert_eq!(waiting.bytes(), &image.manifest);
    assert_eq!(world.upstream.count("/manifests/"), 1);
}

async fn a_lease_holder_that_lost_its_lease_cannot_publish(column: Column) {
    let world = World::on(column).await;
    world.upstream.image("a", "1", &[b"old"]);
    let line = "GET /v2/a/manifests/1";
    world.upstream.fault(line, Fault::Stalled);
    let slow = tokio::spawn({
        let cache = Arc::clone(&world.cache);
        async move { cache.pull.manifest(&repository(), &tag(), Want::GET).await }
    });
    until(|| world.upstream.count(line) == 1).await;
    // Its lease runs out while it waits, the tag moves, and another question is answered.
    world.clock.advance(LEASE);
    let new = world.upstream.image("a", "1", &[b"new"]);
    let instance = world.another_instance();
    let head = instance.pull.manifest(&repository(), &tag(), Want::HEAD).await.unwrap();
    assert_eq!(head.observed.digest, new.digest);
    world.upstream.heal();
    slow.await.unwrap().unwrap();
    let record =
        world.cache.core.storage.ledger.get(&ReferenceKey(&repository(), &tag())).await.unwrap().unwrap().value;
    assert_eq!(record.observed.unwrap().digest, new.digest, "the later answer stays");
}

async fn what_is_known_is_served_while_another_instance_asks(column: Column) {
    let world = World::on(column).await;
    let image = world.upstream.image("a", "1", &[b"layer"]);
    world.get(TAG).await;
    world.clock.advance(Duration::from_hours(1));
    let record = world.cache.core.storage.ledger.get(&ReferenceKey(&repository(), &tag())).await.unwrap().unwrap();
    let lease = Some(Lease { owner: "another".into(), until: world.clock.now().plus(LEASE) });
    let leased = TagRecord { lease, ..record.value };
    world
        .cache
        .core
        .storage
        .ledger
        .swap(&ReferenceKey(&repository(), &tag()), Some(record.version), &leased)
        .await
        .unwrap();
    world.upstream.forget_requests();
    let pulled = world.another_instance().pull.manifest(&repository(), &tag(), Want::GET).await.unwrap();
    assert_eq!((pulled.observed.digest, pulled.served), (image.digest, Served::Stale));
    assert_eq!(world.upstream.count("/manifests/"), 0);
}

async fn a_check_is_not_answered_by_that_of_another_instance_that_failed(column: Column) {
    let world = World::on(column).await;
    world.upstream.image("a", "1", &[b"layer"]);
    world.get(TAG).await;
    world.settled().await;
    world.upstream.forget_requests();
    let ledger = &world.cache.core.storage.ledger;
    let (repository, tag) = (repository(), tag());
    let key = ReferenceKey(&repository, &tag);
    let record = ledger.get(&key).await.unwrap().unwrap();
    let lease = Some(Lease { owner: "another".into(), until: world.clock.now().plus(LEASE) });
    let leased = TagRecord { lease, ..record.value.clone() };
    let version = ledger.swap(&key, Some(record.version), &leased).await.unwrap();
    let failed = async {
        // The reason for this pause: that a caller waits shows nowhere.
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert!(world.upstream.requests().is_empty());
        ledger.swap(&key, version, &record.value).await.unwrap();
    };
    let (checked, ()) = tokio::join!(world.get_with("192.0.2.1", TAG, &[("cache-control", "no-cache")]), failed);
    assert_eq!((checked.header("x-stopover"), world.upstream.count("HEAD")), ("revalidated", 1));
}

async fn ten_thousand_pulls_over_twenty_periods_of_freshness_cost_no_quota(column: Column) {
    let world = World::on(column).await;
    let image = world.upstream.image("a", "1", &[b"layer"]);
    world.get(TAG).await;
    world.upstream.forget_requests();
    for _ in 0..20 {
        world.clock.advance(Duration::from_mins(6));
        for answer in join_all((0..500).map(|_| world.get(TAG))).await {
            assert_eq!(answer.bytes(), &image.manifest);
        }
    }
    assert_eq!(world.upstream.count("GET /v2/a/manifests"), 0);
    assert_eq!(world.upstream.count("HEAD"), 20);
}
