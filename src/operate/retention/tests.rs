use super::*;
use crate::config::Retention;
use crate::oci::{Algorithm, MediaType, Observed};
use crate::operate::report::SweepReport;
use crate::ports::StoredBlob;
use crate::records::{Lease, Versioned};

const NOW: Timestamp = Timestamp(1_000_000_000);
const DAY: u64 = 24 * 3600;

fn digest(name: &str) -> Digest {
    Digest::of(Algorithm::Sha256, name.as_bytes())
}

fn repository(name: &str) -> Repository {
    Repository { upstream: "test.local".parse().unwrap(), name: name.parse().unwrap() }
}

fn ago(days: u64) -> Timestamp {
    Timestamp(NOW.0 - days * DAY)
}

/// Builds what is stored in few words. Content is named after what it is; a blob has as many bytes as its name, a manifest
/// none, unless it is [large](World::large).
#[derive(Default)]
struct World(Vec<Entry>, Vec<StoredBlob>);

impl World {
    fn manifest(mut self, whose: &str, name: &str, names: &[&str], days: u64) -> Self {
        let names = names.iter().map(|name| digest(name)).collect();
        let (repository, digest) = (repository(whose), digest(name));
        self.0.push(Entry::Manifest(StoredManifest { repository, digest, used_at: ago(days), bytes: 0, names }));
        self
    }

    /// The last manifest has so many bytes.
    fn large(mut self, size: u64) -> Self {
        let Some(Entry::Manifest(StoredManifest { bytes, .. })) = self.0.last_mut() else { panic!("it is the last") };
        *bytes = size;
        self
    }

    fn blob(self, name: &str, days: u64) -> Self {
        let state = BlobState::Stored { size: name.len() as u64 };
        let record = BlobRecord { used_at: Some(ago(days)), ..BlobRecord::new(state) };
        self.record(name, record).bytes(name, days)
    }

    fn record(mut self, name: &str, value: BlobRecord) -> Self {
        self.0.push(Entry::Blob { digest: digest(name), record: Versioned { value, version: 1 } });
        self
    }

    fn bytes(mut self, name: &str, days: u64) -> Self {
        let blob = StoredBlob { digest: digest(name), size: name.len() as u64, modified: ago(days) };
        self.1.push(blob);
        self
    }

    fn member(mut self, whose: &str, name: &str, days: u64) -> Self {
        let (repository, digest) = (repository(whose), digest(name));
        self.0.push(Entry::Membership { repository, digest, size: 1, used_at: ago(days) });
        self
    }

    fn tag(mut self, whose: &str, tag: &str, name: &str, days: u64) -> Self {
        let observed = Observed { digest: digest(name), media_type: MediaType::OciIndex, size: 1 };
        let checked_at = ago(days);
        let value =
            TagRecord { observed: Some(observed), previous: None, checked_at, fresh_until: checked_at, lease: None };
        let (repository, reference) = (repository(whose), tag.parse().unwrap());
        self.0.push(Entry::Reference { repository, reference, record: Versioned { value, version: 1 } });
        self
    }

    fn carry_out(&self, task: Task<'_>) -> Batch {
        let mut census = Census::new(task, NOW);
        self.0.iter().for_each(|entry| census.count(entry));
        self.1.iter().for_each(|blob| census.count_bytes(blob));
        let (mut fates, mut batch) = (census.decide(), Batch::default());
        self.0.iter().for_each(|entry| fates.add(entry.clone(), &mut batch));
        self.1.iter().for_each(|blob| fates.add_bytes(blob.clone(), &mut batch));
        batch
    }

    fn mark(&self, rules: &Retention) -> Gone {
        Gone::of(&self.carry_out(Task::Sweep(rules, None)))
    }

    fn purge(&self, whose: &str, reference: &str) -> Gone {
        Gone::of(&self.carry_out(Task::Purge(&repository(whose), &reference.parse().unwrap())))
    }
}

/// What a plan removes, by name: tags, manifests, memberships and blobs.
#[derive(Debug, PartialEq, Eq)]
struct Gone(Vec<String>);

const NAMES: [&str; 9] = ["index", "amd64", "arm64", "image", "other", "a", "b", "shared", "lost"];

fn gone(names: &[&str]) -> Gone {
    let mut names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
    names.sort();
    Gone(names)
}

impl Gone {
    fn of(plan: &Batch) -> Self {
        let name = |of: &Digest| *NAMES.iter().find(|name| digest(name) == *of).unwrap();
        let entries = plan.entries.iter().map(|entry| match entry {
            Entry::Reference { reference, .. } => format!("tag {reference}"),
            Entry::Manifest(manifest) => format!("{} {}", manifest.repository.name, name(&manifest.digest)),
            Entry::Membership { repository, digest, .. } => format!("{} member {}", repository.name, name(digest)),
            Entry::Listing { repository, .. } => format!("{} list", repository.name),
            Entry::Standing { repository, .. } => format!("{} standing", repository.name),
            Entry::Holding { .. } => panic!("it is written anew"),
            Entry::Blob { .. } => panic!("blobs go with their bytes"),
        });
        let mut names: Vec<String> =
            entries.chain(plan.blobs.iter().map(|doomed| format!("blob {}", name(&doomed.digest)))).collect();
        names.sort();
        Self(names)
    }
}

/// A `keep` that just removes a use recorded `days` ago: the item may have been used up to a day later.
fn keep(days: u64) -> Retention {
    Retention { keep: Some(Duration::from_secs((days - 1) * DAY)), pin: Vec::new(), max_size: None }
}

#[test]
fn the_record_of_a_digest_is_no_tag() {
    let by_digest = digest("image").to_string();
    let world = World::default().tag("x", "1", "image", 40).tag("x", &by_digest, "image", 40);
    let (plan, mut report) = (world.carry_out(Task::Sweep(&keep(30), None)), SweepReport::default());
    assert_eq!(Gone::of(&plan), gone(&["tag 1", &format!("tag {by_digest}")]), "both go");
    plan.add_to(&mut report);
    assert_eq!(report.tags, 1);
}

#[test]
fn what_was_not_used_within_keep_goes_with_all_that_only_it_needs() {
    let world = World::default()
        .tag("x", "1", "image", 40)
        .manifest("x", "image", &["a", "shared"], 30)
        .member("x", "a", 40)
        .member("x", "shared", 40)
        .manifest("y", "other", &["b", "shared"], 29)
        .member("y", "b", 40)
        .member("y", "shared", 40)
        .blob("a", 40)
        .blob("b", 40)
        .blob("shared", 40);
    assert_eq!(world.mark(&keep(30)), gone(&["tag 1", "x image", "x member a", "x member shared", "blob a"]));
    assert_eq!(world.mark(&keep(31)), gone(&[]));
    assert_eq!(world.mark(&Retention { keep: None, ..keep(1) }), gone(&[]));
    let mut report = SweepReport::default();
    world.carry_out(Task::Sweep(&keep(30), None)).add_to(&mut report);
    assert_eq!((report.tags, report.memberships, report.blobs), (1, 2, 1));
    assert_eq!(report.freed_bytes, 1);
    assert_eq!(report.manifests, [format!("test.local/x@{}", digest("image"))]);
}

#[test]
fn that_there_is_no_such_tag_is_forgotten_once_it_is_not_believed_any_more() {
    let missing = |fresh_until, lease: Option<Lease>| {
        let mut world = World::default().tag("x", "1", "image", 0);
        let Some(Entry::Reference { record, .. }) = world.0.last_mut() else { panic!("it is the last") };
        record.value = TagRecord { observed: None, fresh_until: Timestamp(fresh_until), lease, ..record.value.clone() };
        world.mark(&Retention { keep: None, ..keep(1) })
    };
    let lease = Lease { owner: "one".into(), until: Timestamp(NOW.0 + 1) };
    assert_eq!(missing(NOW.0, None), gone(&["tag 1"]));
    assert_eq!(missing(NOW.0 + 1, None), gone(&[]));
    assert_eq!(missing(NOW.0, Some(lease)), gone(&[]), "somebody is asking");
}

#[test]
fn a_blob_that_is_used_itself_lives_without_a_manifest() {
    let world = World::default().member("x", "a", 1).blob("a", 1).member("x", "b", 30).blob("b", 30);
    assert_eq!(world.mark(&keep(30)), gone(&["x member b", "blob b"]));
}

#[test]
fn an_index_that_is_used_keeps_its_stored_children_and_one_that_is_not_lives_with_a_used_child() {
    let world = |index: u64, amd64: u64, arm64: u64| {
        World::default()
            .manifest("x", "index", &["amd64", "arm64", "lost"], index)
            .manifest("x", "amd64", &["a"], amd64)
            .manifest("x", "arm64", &["b"], arm64)
            // The same child in another repository is a manifest of its own.
            .manifest("y", "amd64", &["a"], 99)
            .blob("a", 99)
            .blob("b", 99)
            .mark(&keep(30))
    };
    assert_eq!(world(1, 99, 99), gone(&["y amd64"]));
    assert_eq!(world(99, 1, 99), gone(&["y amd64", "x arm64", "blob b"]));
    assert_eq!(world(99, 99, 99), gone(&["x index", "x amd64", "x arm64", "y amd64", "blob a", "blob b"]));
}

#[test]
fn what_a_pinned_tag_is_never_goes_nor_what_it_names() {
    let world = World::default()
        .tag("x", "16.1", "index", 99)
        .tag("x", "15.1", "other", 99)
        .manifest("x", "index", &["amd64"], 99)
        .manifest("x", "amd64", &["a"], 99)
        .manifest("x", "other", &["b"], 99)
        .member("x", "a", 99)
        .blob("a", 99)
        .blob("b", 99);
    let rules = Retention { pin: vec!["test.local/x:16*".into()], ..keep(30) };
    assert_eq!(world.mark(&rules), gone(&["tag 15.1", "x other", "blob b"]));
    let full = Retention { max_size: Some(0), ..rules };
    assert_eq!(world.mark(&full), gone(&["tag 15.1", "x other", "blob b"]), "pinned, whatever room there is");
}

#[test]
fn what_is_being_filled_or_removed_is_left_alone_until_its_time_is_over() {
    let state = |until: u64| BlobState::Claimed { owner: "one".into(), until: Timestamp(until) };
    for (until, busy) in [(NOW.0 + 1, true), (NOW.0, false)] {
        for state in [state(until), BlobState::Removing { until: Timestamp(until) }] {
            let world = World::default().record("a", BlobRecord::new(state)).bytes("a", 99);
            assert_eq!(world.mark(&keep(30)), gone(if busy { &[] } else { &["blob a"] }));
        }
    }
    // A removal that died is completed even if the blob is needed: the next pull fills it again.
    let world = World::default().manifest("x", "image", &["a"], 1);
    let world = world.record("a", BlobRecord::new(BlobState::Removing { until: NOW }));
    assert_eq!(world.mark(&keep(30)), gone(&["blob a"]));
}

#[test]
fn records_that_say_what_is_not_so_are_found_and_bytes_without_one() {
    let used = |state| BlobRecord { used_at: Some(NOW), ..BlobRecord::new(state) };
    let claimed = |until| used(BlobState::Claimed { owner: "one".into(), until: Timestamp(until) });
    let world = World::default()
        .record("a", claimed(NOW.0))
        .record("b", claimed(NOW.0 + 1))
        .record("lost", used(BlobState::Stored { size: 1 }))
        .record("arm64", used(BlobState::Stored { size: 1 + "arm64".len() as u64 }))
        .bytes("arm64", 0)
        .blob("shared", 0)
        .bytes("other", 2)
        .bytes("image", 0)
        // The bytes of a manifest too large for the ledger.
        .manifest("x", "index", &[], 0)
        .bytes("index", 99);
    let plan = world.carry_out(Task::Sweep(&Retention { keep: None, ..keep(1) }, None));
    let mut absent: Vec<_> = plan.absent.iter().map(|(digest, _)| digest.clone()).collect();
    absent.sort();
    let mut expected = [digest("a"), digest("lost"), digest("arm64")];
    expected.sort();
    assert_eq!(absent, expected);
    assert_eq!(Gone::of(&plan), gone(&["blob other"]));
}

#[test]
fn beyond_the_size_goes_what_was_used_longest_ago_by_itself_or_by_a_manifest() {
    let world = World::default()
        .manifest("x", "index", &["image"], 1)
        .manifest("x", "image", &["a"], 20)
        .manifest("x", "other", &["b"], 5)
        .blob("a", 25)
        .blob("b", 25)
        .blob("shared", 3);
    let most = |bytes| world.mark(&Retention { max_size: Some(bytes), ..keep(30) });
    assert_eq!(most(8), gone(&[]));
    assert_eq!(most(7), gone(&["blob b"]));
    assert_eq!(most(6), gone(&["blob b", "blob shared"]), "the index was used yesterday, and with it its image");
    assert_eq!(most(0), gone(&["blob b", "blob shared", "blob a"]), "manifests stay");
}

#[test]
fn manifests_count_towards_the_size_and_go_after_blobs_of_their_age() {
    let world = World::default()
        .manifest("x", "image", &["a"], 20)
        .large(100)
        .manifest("x", "other", &["b"], 5)
        .large(100)
        .manifest("x", "index", &[], 25)
        .large(100)
        .tag("x", "16.1", "index", 25)
        .blob("a", 25)
        .blob("b", 25);
    let rules = Retention { pin: vec!["test.local/x:16*".into()], ..keep(30) };
    let most = |bytes| world.mark(&Retention { max_size: Some(bytes), ..rules.clone() });
    assert_eq!(most(302), gone(&[]));
    assert_eq!(most(301), gone(&["blob a"]));
    assert_eq!(most(300), gone(&["blob a", "x image"]));
    assert_eq!(most(0), gone(&["blob a", "x image", "blob b", "x other"]), "what is pinned stays");
}

#[test]
fn what_is_written_after_it_was_counted_stays_with_what_it_names() {
    let world = World::default().manifest("x", "image", &["a"], 40).member("x", "a", 40).blob("a", 40);
    let rules = keep(30);
    let mut census = Census::new(Task::Sweep(&rules, None), NOW);
    world.0.iter().for_each(|entry| census.count(entry));
    world.1.iter().for_each(|blob| census.count_bytes(blob));
    let (mut fates, mut batch) = (census.decide(), Batch::default());
    let used = World::default().manifest("x", "image", &["a"], 0).member("x", "a", 40);
    let used = used.record("a", BlobRecord { used_at: Some(NOW), ..BlobRecord::new(BlobState::Stored { size: 1 }) });
    used.0.into_iter().for_each(|entry| {
        // Each write changes the version.
        let entry = match entry {
            Entry::Blob { digest, record } => Entry::Blob { digest, record: Versioned { version: 2, ..record } },
            entry => entry,
        };
        fates.add(entry, &mut batch);
    });
    assert_eq!(Gone::of(&batch), gone(&[]));
}

/// `STOPOVER_SWEEP_ITEMS` asks for more of them.
#[test]
fn a_part_holds_its_share_of_the_items_and_all_parts_cover_each_once() {
    let images = std::env::var("STOPOVER_SWEEP_ITEMS").ok().and_then(|items| items.parse().ok()).unwrap_or(6000) / 3;
    let mut world = World::default();
    for number in 0..images {
        let (whose, layer) = (format!("r{number}"), format!("layer {number}"));
        let (image, days) = (format!("image {number}"), 40 * (number % 2));
        world = world.manifest(&whose, &image, &[&layer], days).member(&whose, &layer, 40).blob(&layer, 40);
    }
    let (rules, most) = (keep(30), world.0.len() / 8);
    let (mut next, mut held, mut covered) = (Course::first(world.0.len(), most, NOW), Vec::new(), 0);
    while let Some(course) = next {
        let mut census = Census::new(Task::Sweep(&rules, Some(&course)), NOW);
        world.0.iter().for_each(|entry| census.count(entry));
        let names = census.manifests.values().map(|manifest| manifest.names.len()).sum::<usize>();
        held.push(names + census.blobs.len() + census.named.len());
        covered += world.0.iter().filter(|entry| course.part.has(entry)).count();
        next = course.next(std::iter::empty(), None, NOW);
    }
    assert_eq!((held.len(), covered), (16, world.0.len()));
    assert!(held.iter().all(|held| *held < most * 3 / 2), "{most}: {held:?}");
}

#[test]
fn a_purge_takes_a_tag_and_what_nothing_else_needs() {
    let world = World::default()
        .tag("x", "1", "index", 0)
        .tag("x", "2", "other", 0)
        .manifest("x", "index", &["amd64", "arm64"], 0)
        .manifest("x", "amd64", &["a", "shared"], 0)
        .manifest("x", "arm64", &["b"], 0)
        .manifest("x", "other", &["arm64"], 0)
        .manifest("y", "image", &["shared"], 0)
        .member("x", "a", 0)
        .member("x", "b", 0)
        .member("x", "shared", 0)
        .member("y", "shared", 0)
        .blob("a", 0)
        .blob("b", 0)
        .blob("shared", 0);
    let whole = ["tag 1", "x index", "x amd64", "x member a", "x member shared", "blob a"];
    assert_eq!(world.purge("x", "1"), gone(&whole), "arm64 is also in another index, shared in another repository");
    assert_eq!(world.purge("x", digest("index").as_str()), gone(&whole));
    assert_eq!(world.purge("x", "3"), gone(&[]));
    assert_eq!(world.purge("y", "1"), gone(&[]));
    let tagged = world.tag("x", "also-1", "index", 0);
    assert_eq!(tagged.purge("x", "1"), gone(&["tag 1"]), "another tag has it");
    let both = ["tag 1", "tag also-1", "x index", "x amd64", "x member a", "x member shared", "blob a"];
    assert_eq!(tagged.purge("x", digest("index").as_str()), gone(&both));
}
