//! Random pulls (by tag, by digest only, of single blobs), shared layers, indexes and jumps of time, held against a model:
//! a sweep never deletes what was used within `keep`, and frees in one go what was not used for a day longer.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use crate::model::hold;
use http::StatusCode;
use proptest::prelude::*;
use serde_json::json;
use stopover::config::Cold;
use stopover::oci::{Digest, MediaType, Repository};
use support::scripted::ScriptedImage;
use support::world::{Column, World};

const HOUR: u64 = 3600;
const DAY: u64 = 24 * HOUR;
const KEEP: u64 = 3 * DAY;
/// The repositories, each with one index of two images.
const NAMES: [&str; 3] = ["a", "b", "b/c"];
/// Layers that any image may have, in any repository.
const LAYERS: [&[u8]; 4] = [b"zero", b"one", b"two", b"three"];

#[derive(Clone, Debug)]
enum Step {
    /// Pulls the index of a repository: by tag or by digest, by HEAD or not.
    Index(usize, bool, bool),
    /// Pulls one of its images by digest.
    Image(usize, usize),
    /// Pulls a layer of one of its images, whether or not its manifest was pulled before.
    Blob(usize, usize),
    Wait(u64),
    Sweep,
    /// Pulls an image, all of it, while a sweep runs.
    PullDuringSweep(usize, usize),
}

fn step() -> impl Strategy<Value = Step> {
    let (name, image) = (0..NAMES.len(), 0..2_usize);
    let hours = prop_oneof![1..30_u64, Just(24), Just(47), Just(71), Just(72), Just(73), Just(96), Just(97)];
    prop_oneof![
        3 => (name.clone(), any::<bool>(), any::<bool>()).prop_map(|(name, tag, head)| Step::Index(name, tag, head)),
        4 => (name.clone(), image.clone()).prop_map(|(name, image)| Step::Image(name, image)),
        2 => (name.clone(), image.clone()).prop_map(|(name, image)| Step::Blob(name, image)),
        6 => hours.prop_map(|hours| Step::Wait(hours * HOUR)),
        4 => Just(Step::Sweep),
        2 => (name, image).prop_map(|(name, image)| Step::PullDuringSweep(name, image)),
    ]
}

/// What there is to pull in one repository.
struct Published {
    index: Digest,
    images: [ScriptedImage; 2],
}

fn publish(world: &World) -> Vec<Published> {
    let publish = |(number, name): (usize, &&str)| {
        let image = |which: usize| {
            let layers = [LAYERS[(number + which) % 4], LAYERS[(number + 2 * which + 1) % 4]];
            world.upstream.image(name, &format!("image-{which}"), &layers)
        };
        let images = [image(0), image(1)];
        let listed: Vec<_> =
            images.iter().map(|image| json!({ "digest": image.digest, "size": image.manifest.len() })).collect();
        let index = json!({ "manifests": listed, "of": name }).to_string();
        let index = world.upstream.manifest(name, "1", MediaType::OciIndex.as_str(), index.as_bytes());
        Published { index, images }
    };
    NAMES.iter().enumerate().map(publish).collect()
}

/// When what is stored was last used.
#[derive(Default)]
struct Model {
    manifests: HashMap<(usize, Digest), u64>,
    blobs: HashMap<Digest, u64>,
}

impl Model {
    /// An image is used: its index with it, and its blobs.
    fn image(&mut self, number: usize, published: &Published, image: &ScriptedImage, now: u64) {
        self.manifests.insert((number, image.digest.clone()), now);
        if let Some(index) = self.manifests.get_mut(&(number, published.index.clone())) {
            *index = now;
        }
        self.blobs.extend(image.blobs.iter().map(|(digest, _)| (digest.clone(), now)));
    }

    /// An index is used: with it those of its images that are stored.
    fn index(&mut self, number: usize, published: &Published, now: u64) {
        self.manifests.insert((number, published.index.clone()), now);
        for image in &published.images {
            if self.manifests.contains_key(&(number, image.digest.clone())) {
                self.image(number, published, image, now);
            }
        }
    }
}

async fn stored(world: &World, name: &str, digest: &Digest) -> bool {
    let repository = Repository { upstream: "test.local".parse().unwrap(), name: name.parse().unwrap() };
    world.cache.core.storage.ledger.manifest(&repository, digest).await.unwrap().is_some()
}

/// Holds what a sweep has left against the model, and takes over what it was free to do.
async fn check(world: &World, published: &[Published], model: &mut Model) {
    let now = world.clock.now().0;
    let must = |used: u64| now < used + KEEP;
    let may = |used: u64| now < used + KEEP + DAY;
    for (number, there) in published.iter().enumerate() {
        for digest in [&there.index, &there.images[0].digest, &there.images[1].digest] {
            let (key, is) = ((number, digest.clone()), stored(world, NAMES[number], digest).await);
            let used = model.manifests.get(&key).copied();
            assert!(is || !used.is_some_and(must), "manifest {digest} went {used:?} to {now}");
            assert!(!is || used.is_some_and(may), "manifest {digest} stays {used:?} to {now}");
            if !is {
                model.manifests.remove(&key);
            }
        }
    }
    let left: BTreeSet<String> = world.stored_blobs().await.into_iter().collect();
    for (digest, used) in std::mem::take(&mut model.blobs) {
        let is = left.contains(digest.as_str());
        assert!(is || !must(used), "blob {digest} went, used at {used}, {now} now");
        assert!(!is || may(used), "blob {digest} stays, used at {used}, {now} now");
        if is {
            model.blobs.insert(digest, used);
        }
    }
    assert_eq!(left.len(), model.blobs.len(), "what nobody pulled is stored");
}

async fn pull_image(world: &World, name: &str, image: &ScriptedImage) {
    let answer = world.get(&format!("/v2/test.local/{name}/manifests/{}", image.digest)).await;
    assert_eq!(answer.bytes(), &image.manifest);
    for (digest, bytes) in &image.blobs {
        let answer = world.pull(&format!("/v2/test.local/{name}/blobs/{digest}")).await;
        assert_eq!(answer.body.as_ref(), Ok(bytes), "{:?}", answer.status);
    }
}

async fn run(column: Column, steps: Vec<Step>) {
    let settings = format!("fresh = \"1h\"\nkeep = \"{KEEP}s\"");
    let world = World::plan(column).cold(Cold::Wait).settings(&settings).start().await;
    let published = publish(&world);
    let mut model = Model::default();
    for step in steps {
        let now = world.clock.now().0;
        match step {
            Step::Index(number, tag, head) => {
                let (name, there) = (NAMES[number], &published[number]);
                let reference = if tag { "1" } else { there.index.as_str() };
                let path = format!("/v2/test.local/{name}/manifests/{reference}");
                let before = stored(&world, name, &there.index).await;
                let answer = if head { world.head(&path).await } else { world.get(&path).await };
                assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
                // Upstream is asked with HEAD for what is only looked at: nothing is stored, nothing is used.
                if before || !head {
                    model.index(number, there, now);
                }
            }
            Step::Image(number, which) => {
                let image = &published[number].images[which];
                pull_image(&world, NAMES[number], image).await;
                world.settled().await;
                model.image(number, &published[number], image, now);
            }
            Step::Blob(number, which) => {
                let (digest, bytes) = &published[number].images[which].blobs[1];
                let path = format!("/v2/test.local/{}/blobs/{digest}", NAMES[number]);
                assert_eq!(world.pull(&path).await.body.as_ref(), Ok(bytes));
                world.settled().await;
                model.blobs.insert(digest.clone(), now);
            }
            Step::Wait(seconds) => world.clock.advance(Duration::from_secs(seconds)),
            Step::Sweep => {
                let dry = world.cache.operate.sweep(true).await.unwrap();
                let mut swept = world.cache.operate.sweep(false).await.unwrap();
                swept.manifests.sort();
                let mut promised = dry.manifests.clone();
                promised.sort();
                assert_eq!((swept.manifests, swept.freed_bytes), (promised, dry.freed_bytes));
                check(&world, &published, &mut model).await;
                let again = world.cache.operate.sweep(false).await.unwrap();
                assert_eq!((again.manifests.len(), again.blobs, again.repaired), (0, 0, 0), "one sweep is enough");
            }
            Step::PullDuringSweep(number, which) => {
                let image = &published[number].images[which];
                let (swept, ()) =
                    tokio::join!(world.cache.operate.sweep(false), pull_image(&world, NAMES[number], image));
                swept.unwrap();
                world.settled().await;
                // Its index, where that was not used for so long, may have gone before the image was used.
                let index = (number, published[number].index.clone());
                let used = model.manifests.get(&index).is_some_and(|used| now < used + KEEP);
                if !used && !stored(&world, NAMES[number], &index.1).await {
                    model.manifests.remove(&index);
                }
                model.image(number, &published[number], image, now);
                world.cache.operate.sweep(false).await.unwrap();
                check(&world, &published, &mut model).await;
            }
        }
    }
}

#[test]
fn no_sweep_deletes_what_was_used_within_keep_or_leaves_what_was_not_on_the_embedded_adapters() {
    hold(24, step(), |steps| run(Column::Embedded, steps));
}

#[test]
fn no_sweep_deletes_what_was_used_within_keep_or_leaves_what_was_not_on_aws() {
    hold(12, step(), |steps| run(Column::Aws, steps));
}
