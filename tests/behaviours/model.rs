//! Random interleavings of pulls, moves, faults, lost leases and time on two instances, held against a model: never bytes
//! that are not their digest's, never a tag older than the rules allow, never a second GET for a digest.

use std::collections::HashMap;
use std::time::Duration;

use futures_util::future::join_all;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use stopover::oci::{Algorithm, Digest, Reference, Repository};
use stopover::pull::{PulledManifest, Want};
use stopover::records::{Lease, ReferenceKey, TagRecord};
use stopover::values::served::Served;
use support::scripted::Fault;
use support::world::{Column, World};

const FRESH: u64 = 300;
/// Ten per cent of jitter.
const FRESH_AT_MOST: u64 = 330;
const STALE: u64 = 3600;
const TAGS: usize = 3;

#[derive(Clone, Debug)]
enum Step {
    /// Pulls at once: by which instance, of which tag, by HEAD or not.
    Pulls(Vec<(usize, usize, bool)>),
    /// A pull by a digest that a client was given before.
    Digest(usize, usize),
    /// Upstream moves a tag to new content.
    Move(usize),
    Delete(usize),
    Fault(usize),
    Heal,
    Wait(u64),
    /// An instance took the lease of a tag and died.
    LoseLease(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let pull = (0..2_usize, 0..TAGS, any::<bool>());
    prop_oneof![
        6 => vec(pull, 1..6).prop_map(Step::Pulls),
        2 => (0..2_usize, 0..8_usize).prop_map(|(instance, digest)| Step::Digest(instance, digest)),
        3 => (0..TAGS).prop_map(Step::Move),
        1 => (0..TAGS).prop_map(Step::Delete),
        2 => (0..4_usize).prop_map(Step::Fault),
        2 => Just(Step::Heal),
        4 => prop_oneof![1..20_u64, Just(FRESH), Just(FRESH_AT_MOST), 600..2000_u64, Just(STALE)].prop_map(Step::Wait),
        1 => (0..TAGS).prop_map(Step::LoseLease),
    ]
}

/// What upstream has said a tag is, and since when until when.
#[derive(Default)]
struct Model {
    history: HashMap<usize, Vec<(Digest, u64, u64)>>,
    published: u64,
    given: Vec<Digest>,
}

fn repository() -> Repository {
    Repository { upstream: "test.local".parse().unwrap(), name: "a".parse().unwrap() }
}

fn fault(number: usize) -> Fault {
    match number {
        0 => Fault::Status(503, vec![], String::new()),
        1 => Fault::Status(429, vec![("retry-after", "30".into())], String::new()),
        2 => Fault::Corrupt,
        _ => Fault::Truncated,
    }
}

fn check(model: &mut Model, tag: usize, pulled: &PulledManifest, now: u64) {
    let digest = &pulled.observed.digest;
    if let Some(manifest) = &pulled.manifest {
        assert_eq!(&Digest::of(Algorithm::Sha256, &manifest.bytes), digest, "bytes that are not their digest's");
    }
    let allowed = if pulled.served == Served::Stale { STALE } else { FRESH_AT_MOST };
    let periods = model.history.get(&tag).into_iter().flatten();
    let lately = periods.filter(|(known, ..)| known == digest).any(|(_, _, until)| until + allowed >= now);
    assert!(lately, "tag {tag} was served as {digest} ({:?}), which it has not been for too long", pulled.served);
    model.given.push(digest.clone());
}

async fn run(column: Column, steps: Vec<Step>) {
    let world = World::plan(column).settings(&format!("fresh = \"{FRESH}s\"\nstale = \"{STALE}s\"")).start().await;
    let instances = [std::sync::Arc::clone(&world.cache), world.another_instance()];
    let mut model = Model::default();
    let mut faulty = false;
    for step in steps {
        let now = world.clock.now().0;
        match step {
            Step::Pulls(pulls) => {
                let pulls = pulls.into_iter().map(|(instance, tag, head)| {
                    let want = if head { Want::HEAD } else { Want::GET };
                    let instance = &instances[instance];
                    async move {
                        let reference: Reference = format!("t{tag}").parse().unwrap();
                        (tag, instance.pull.manifest(&repository(), &reference, want).await)
                    }
                });
                for (tag, outcome) in join_all(pulls).await {
                    if let Ok(pulled) = outcome {
                        check(&mut model, tag, &pulled, now);
                    }
                }
            }
            Step::Digest(instance, number) => {
                if let Some(digest) = model.given.iter().rev().nth(number) {
                    let reference = Reference::Digest(digest.clone());
                    if let Ok(pulled) = instances[instance].pull.manifest(&repository(), &reference, Want::GET).await {
                        let bytes = &pulled.manifest.unwrap().bytes;
                        assert_eq!(&Digest::of(Algorithm::Sha256, bytes), digest);
                    }
                }
            }
            Step::Move(tag) => {
                model.published += 1;
                let content = model.published.to_le_bytes();
                let image = world.upstream.image("a", &format!("t{tag}"), &[&content]);
                model.history.entry(tag).or_default().push((image.digest, now, now));
            }
            Step::Delete(tag) => world.upstream.delete_tag("a", &format!("t{tag}")),
            Step::Fault(number) => {
                world.upstream.heal();
                world.upstream.fault("/manifests/", fault(number));
                faulty = true;
            }
            Step::Heal => world.upstream.heal(),
            Step::Wait(seconds) => world.clock.advance(Duration::from_secs(seconds)),
            Step::LoseLease(tag) => {
                let reference: Reference = format!("t{tag}").parse().unwrap();
                let known =
                    world.cache.core.storage.ledger.get(&ReferenceKey(&repository(), &reference)).await.unwrap();
                let now = world.clock.now();
                let empty =
                    TagRecord { observed: None, previous: None, checked_at: now, fresh_until: now, lease: None };
                let (record, version) = known.map_or((empty, None), |known| (known.value, Some(known.version)));
                // Already over when it is looked at: what is tested is that nothing is lost, not the waiting.
                let leased = TagRecord { lease: Some(Lease { owner: "the dead".into(), until: now }), ..record };
                world
                    .cache
                    .core
                    .storage
                    .ledger
                    .swap(&ReferenceKey(&repository(), &reference), version, &leased)
                    .await
                    .unwrap();
            }
        }
        // The tags that upstream has stay what they are until the next step.
        for (tag, periods) in &mut model.history {
            if world.upstream.has("a", &format!("t{tag}"), periods.last().map(|(digest, ..)| digest)) {
                periods.last_mut().unwrap().2 = world.clock.now().0;
            }
        }
    }
    if !faulty {
        for (digest, ..) in model.history.values().flatten() {
            let fetched = world.upstream.served_by_get(digest);
            assert!(fetched <= 1, "{digest} was fetched {fetched} times");
        }
    }
}

/// Runs random steps, and where they fail shows the shortest that do.
pub(crate) fn hold<S: Strategy, F: Future<Output = ()>>(cases: u32, step: S, run: impl Fn(Vec<S::Value>) -> F) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let mut runner = TestRunner::new(Config { cases, failure_persistence: None, ..Config::default() });
    let outcome = runner.run(&vec(step, 1..40), |steps| {
        // A panic in here is caught by the runner, which then looks for a shorter way to it.
        runtime.block_on(run(steps));
        Ok(())
    });
    if let Err(error) = outcome {
        panic!("{error}");
    }
}

#[test]
fn no_interleaving_serves_wrong_or_too_old_content_on_the_embedded_adapters() {
    hold(64, step(), |steps| run(Column::Embedded, steps));
}

#[test]
fn no_interleaving_serves_wrong_or_too_old_content_on_two_instances() {
    hold(24, step(), |steps| run(Column::Aws, steps));
}
