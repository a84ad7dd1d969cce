//! Which fill goes first, and what operators see of fills.

use http::{Method, StatusCode};
use stopover::report::{FillState, FillStatus};
use support::scripted::Fault;
use support::world::{Answer, Column, World};

/// A request of somebody on the machine itself.
async fn operator(world: &World, method: Method, path: &str) -> Answer {
    let answer = world.send_from("127.0.0.1", method, path).await;
    assert_eq!(world.send_from("192.0.2.1", Method::GET, path).await.status, StatusCode::FORBIDDEN);
    answer
}

fn statuses(answer: &Answer) -> Vec<FillStatus> {
    let body: serde_json::Value = serde_json::from_slice(answer.bytes()).unwrap();
    serde_json::from_value(body["fills"].clone()).unwrap()
}

/// On AWS nobody is a caller from the machine itself; there the filler function is asked.
mod embedded_only {
    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_fill_that_was_given_up_is_shown_with_its_reason_and_retried() {
        let world = World::on(Column::Embedded).await;
        let image = world.upstream.image("team/app", "1", &[b"layer"]);
        let digest = &image.blobs[1].0;
        let one = format!("/_stopover/fills/{digest}");
        assert_eq!(operator(&world, Method::GET, &one).await.status, StatusCode::NOT_FOUND);
        world.upstream.fault(&format!("blobs/{digest}"), Fault::Status(404, vec![], String::new()));
        world.get("/v2/test.local/team/app/manifests/1").await;
        world.settled().await;

        let [failed] = &statuses(&operator(&world, Method::GET, "/_stopover/fills").await)[..] else {
            panic!("one is missing at upstream")
        };
        assert_eq!((&failed.digest, failed.state, failed.attempts), (digest, FillState::Failed, 1));
        assert_eq!(failed.repository.as_deref(), Some("test.local/team/app"));
        let reason = failed.failure.as_deref().unwrap_or_default();
        assert!(reason.contains("does not have"), "{failed:?}");
        let shown: FillStatus = serde_json::from_slice(operator(&world, Method::GET, &one).await.bytes()).unwrap();
        assert_eq!(&shown, failed);

        world.upstream.heal();
        let retried = world.send_from("127.0.0.1", Method::POST, "/_stopover/fills/retry").await;
        assert_eq!(retried.bytes().as_ref(), br#"{"retried":1}"#);
        world.settled().await;
        assert_eq!(statuses(&operator(&world, Method::GET, "/_stopover/fills").await), []);
        let stored: FillStatus = serde_json::from_slice(operator(&world, Method::GET, &one).await.bytes()).unwrap();
        assert_eq!((stored.state, stored.size, stored.written), (FillState::Stored, 5, 5));
        let retried = world.send_from("127.0.0.1", Method::POST, "/_stopover/fills/retry").await;
        assert_eq!(retried.bytes().as_ref(), br#"{"retried":0}"#, "nothing is left to retry");
    }
}
