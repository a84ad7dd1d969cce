//! What pulls cost of the table, where that is `DynamoDB`: a partition writes 1,000 units a second and reads 3,000.

use std::time::Duration;

use futures_util::future::join_all;
use http::StatusCode;
use serde_json::json;
use stopover::oci::{Reference, Repository};
use stopover::pull::Want;
use stopover::records::blob::NOTED;
use support::aws::PARTITION;
use support::world::{Column, World};

/// As Lambda starts them for a burst.
const INSTANCES: usize = 50;

/// Pulls one tag by as many new instances, and returns the write units that its repository's partition took.
async fn burst(world: &World) -> usize {
    let endpoints = world.endpoints().expect("the AWS column has endpoints");
    let mut instances = Vec::new();
    for _ in 0..INSTANCES {
        instances.push(world.another_instance());
    }
    endpoints.count_capacity(Some(PARTITION));
    let repository = Repository { upstream: "test.local".parse().unwrap(), name: "a".parse().unwrap() };
    let tag: Reference = "1".parse().unwrap();
    for pulled in join_all(instances.iter().map(|instance| instance.pull.manifest(&repository, &tag, Want::GET))).await
    {
        pulled.expect("a pull that another instance has just made");
    }
    endpoints.units("repo#test.local/a").writes
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn new_instances_write_nothing_for_a_manifest_that_was_used_today_and_little_on_another_day() {
    let world = World::plan(Column::Aws).upstream("fresh = \"30d\"").start().await;
    // The largest that is stored in the table: each write of it would be 340 units.
    let text = json!({ "schemaVersion": 2, "manifests": [], "annotations": { "padding": "x".repeat(340_000) } });
    world.upstream.manifest("a", "1", "application/vnd.oci.image.index.v1+json", text.to_string().as_bytes());
    assert_eq!(world.get("/v2/test.local/a/manifests/1").await.status, StatusCode::OK);
    world.settled().await;
    assert_eq!(burst(&world).await, 0, "it was used today");

    world.clock.advance(NOTED + Duration::from_mins(1));
    let written = burst(&world).await;
    assert!((1..=4 * INSTANCES).contains(&written), "{written} units");
    assert_eq!(burst(&world).await, 0, "it was used today");
}
