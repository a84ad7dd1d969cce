//! Clauses of `Ledger`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use anyhow::{Context as _, Result};
use futures_util::TryStreamExt as _;
use futures_util::future::try_join_all;
use stopover::oci::{Algorithm, Descriptor, Digest, MAX_NAMED, Manifest, MediaType, Observed, Reference, Tags};
use stopover::ports::MAX_LISTING_BYTES;
use stopover::records::gauge::{Gauge, Quota, Reading};
use stopover::records::{
    BlobRecord, BlobState, Checkpoint, Entry, GaugeKey, Holding, HoldingKey, Lease, List, ListKey, Listing, Member,
    Previous, ReferenceKey, Standing, StoredManifest, TagRecord, Versioned,
};
use stopover::values::time::Timestamp;

use super::storage::{NOW, Storage, digest, manifest, repository};

/// As many as no group of writes takes at once.
const RACERS: u64 = 64;

pub(crate) fn tag_record(checked_at: u64) -> TagRecord {
    let observed = Observed { digest: digest("observed"), media_type: MediaType::DockerList, size: 1 << 40 };
    TagRecord {
        observed: Some(observed),
        previous: Some(Previous { digest: digest("previous"), checked_at: Timestamp(checked_at / 2) }),
        checked_at: Timestamp(checked_at),
        fresh_until: Timestamp(checked_at + 300),
        lease: Some(Lease { owner: "one".to_owned(), until: Timestamp(checked_at + 20) }),
    }
}

pub(crate) fn blob_record(attempts: u32) -> BlobRecord {
    BlobRecord { attempts, ..BlobRecord::new(BlobState::Absent) }
}

pub(crate) fn members(count: usize) -> Vec<Descriptor> {
    let member =
        |number| Descriptor { digest: digest(&format!("member {number}")), size: number as u64, foreign: false };
    (0..count).map(member).collect()
}

pub(crate) async fn what_was_not_written_is_absent(storage: &Storage) -> Result<()> {
    let repository = repository("library/nothing")?;
    assert_eq!(storage.ledger.get(&ReferenceKey(&repository, &"latest".parse()?)).await?, None);
    assert_eq!(storage.ledger.manifest(&repository, &digest("never")).await?, None);
    let view = storage.ledger.blob(&repository, &digest("never")).await?;
    assert_eq!((view.member, view.record), (None, None));
    Ok(())
}

pub(crate) async fn a_tag_record_is_read_as_it_was_written(storage: &Storage) -> Result<()> {
    let (repository, tag) = (repository("a/b")?, "v1.2-x_y".parse()?);
    let missing = TagRecord { observed: None, previous: None, lease: None, ..tag_record(u64::from(u32::MAX)) };
    let mut version = None;
    for record in [tag_record(1), missing, tag_record(2)] {
        assert!(storage.ledger.swap(&ReferenceKey(&repository, &tag), version, &record).await?.is_some());
        let read = storage.ledger.get(&ReferenceKey(&repository, &tag)).await?.context("absent")?;
        assert_eq!(read.value, record);
        version = Some(read.version);
    }
    assert_eq!(storage.ledger.get(&ReferenceKey(&repository, &"v1.2".parse()?)).await?, None);
    Ok(())
}

pub(crate) async fn a_blob_record_is_read_as_it_was_written(storage: &Storage) -> Result<()> {
    let (repository, digest) = (repository("a")?, digest("blob"));
    let claimed = BlobState::Claimed { owner: "one \u{e9}\"\n".to_owned(), until: Timestamp(1 << 50) };
    let mut version = None;
    for (state, failure) in [
        (BlobState::Absent, Some("why \u{1f642}".to_owned())),
        (claimed, None),
        (BlobState::Stored { size: 0 }, Some(String::new())),
        (BlobState::Stored { size: u64::MAX }, None),
    ] {
        let checkpoint = Checkpoint {
            offset: u64::MAX,
            hash: "0a".to_owned(),
            upload: "{}".to_owned(),
            upstream: Some("a.test".parse()?),
        };
        let (checkpoint, used_at) = (Some(checkpoint), Some(Timestamp(3)));
        let record = BlobRecord { state, attempts: u32::MAX, failure, checkpoint, used_at, open: true, shared: true };
        assert!(storage.ledger.swap(&digest, version, &record).await?.is_some());
        let read = storage.ledger.blob(&repository, &digest).await?.record.context("absent")?;
        assert_eq!(read.value, record);
        version = Some(read.version);
    }
    Ok(())
}

pub(crate) async fn a_conditional_write_with_another_version_writes_nothing(storage: &Storage) -> Result<()> {
    let (ledger, repository, tag, digest) = (&storage.ledger, repository("a")?, "t".parse()?, digest("blob"));
    assert!(
        ledger.swap(&ReferenceKey(&repository, &tag), Some(1), &tag_record(1)).await?.is_none(),
        "there is nothing to have a version"
    );
    assert!(ledger.swap(&digest, Some(1), &blob_record(1)).await?.is_none(), "there is nothing to have a version");
    assert_eq!(ledger.get(&ReferenceKey(&repository, &tag)).await?, None);
    assert_eq!(ledger.blob(&repository, &digest).await?.record, None);

    assert!(ledger.swap(&ReferenceKey(&repository, &tag), None, &tag_record(1)).await?.is_some());
    assert!(ledger.swap(&digest, None, &blob_record(1)).await?.is_some());
    let written = ledger.get(&ReferenceKey(&repository, &tag)).await?.context("absent")?;
    let written_blob = ledger.blob(&repository, &digest).await?.record.context("absent")?;
    for wrong in [None, Some(written.version.wrapping_add(1)), Some(written.version.wrapping_sub(1))] {
        assert!(ledger.swap(&ReferenceKey(&repository, &tag), wrong, &tag_record(2)).await?.is_none());
    }
    for wrong in [None, Some(written_blob.version.wrapping_add(1)), Some(written_blob.version.wrapping_sub(1))] {
        assert!(ledger.swap(&digest, wrong, &blob_record(2)).await?.is_none());
    }
    assert_eq!(ledger.get(&ReferenceKey(&repository, &tag)).await?, Some(written));
    assert_eq!(ledger.blob(&repository, &digest).await?.record, Some(written_blob));
    Ok(())
}

pub(crate) async fn every_write_changes_the_version(storage: &Storage) -> Result<()> {
    let (repository, tag) = (repository("a")?, "t".parse()?);
    let mut versions = BTreeSet::new();
    let mut version = None;
    for _ in 0..10 {
        // Even where nothing else changes.
        version = storage.ledger.swap(&ReferenceKey(&repository, &tag), version, &tag_record(1)).await?;
        let read = storage.ledger.get(&ReferenceKey(&repository, &tag)).await?.context("absent")?;
        assert_eq!(Some(read.version), version, "a write says which version it made");
        assert!(versions.insert(version), "a version was used twice");
    }
    Ok(())
}

pub(crate) async fn of_racing_conditional_writes_one_wins(storage: &Storage) -> Result<()> {
    let (repository, tag, digest) = (Arc::new(repository("a")?), Arc::new("t".parse()?), digest("blob"));
    // The first write of an item, and one over a version; records that differ, and records that do not.
    for round in 0..3_u32 {
        let tag_version = storage.ledger.get(&ReferenceKey(&repository, &tag)).await?.map(|read| read.version);
        let blob_version = storage.ledger.blob(&repository, &digest).await?.record.map(|read| read.version);
        let race = (0..RACERS).map(|racer| {
            let (ledger, digest) = (Arc::clone(&storage.ledger), digest.clone());
            let (repository, tag) = (Arc::clone(&repository), Arc::clone(&tag));
            let number = if round == 2 { 0 } else { racer };
            tokio::spawn(async move {
                let tag = ledger.swap(&ReferenceKey(&repository, &tag), tag_version, &tag_record(number)).await?;
                let blob = ledger.swap(&digest, blob_version, &blob_record(u32::try_from(number)?)).await?;
                anyhow::Ok((number, tag, blob))
            })
        });
        let outcomes = try_join_all(race).await?.into_iter().collect::<Result<Vec<_>>>()?;
        let tag_winners: Vec<u64> =
            outcomes.iter().filter(|outcome| outcome.1.is_some()).map(|outcome| outcome.0).collect();
        let blob_winners: Vec<u64> =
            outcomes.iter().filter(|outcome| outcome.2.is_some()).map(|outcome| outcome.0).collect();
        assert_eq!((tag_winners.len(), blob_winners.len()), (1, 1), "round {round}");
        let written = storage.ledger.get(&ReferenceKey(&repository, &tag)).await?.context("absent")?.value;
        assert_eq!(written, tag_record(tag_winners[0]), "the winner's record is the one that is there");
        let written = storage.ledger.blob(&repository, &digest).await?.record.context("absent")?.value;
        assert_eq!(u64::from(written.attempts), blob_winners[0]);
    }
    Ok(())
}

pub(crate) async fn a_standing_is_what_was_said_last(storage: &Storage) -> Result<()> {
    let (ledger, repository, other) = (&storage.ledger, repository("a/b")?, repository("a")?);
    assert_eq!(ledger.standing(&repository).await?, None);
    for standing in [
        Standing::Absent { until: Timestamp(1 << 40) },
        Standing::Shown { at: Timestamp(7), until: Timestamp(1 << 40) },
        Standing::Absent { until: Timestamp(0) },
        Standing::Shown { at: Timestamp(0), until: Timestamp(0) },
    ] {
        ledger.put_standing(&repository, standing).await?;
        assert_eq!(ledger.standing(&repository).await?, Some(standing));
        assert_eq!(ledger.standing(&other).await?, None);
    }
    Ok(())
}

pub(crate) async fn a_membership_that_is_proven_stays_so(storage: &Storage) -> Result<()> {
    let (ledger, repository) = (&storage.ledger, repository("a")?);
    // More than are read and written at once.
    let members = members(137);
    let [named, proven] = [Timestamp(NOW.0 + 1), Timestamp(NOW.0 + 2)];
    for member in members.iter().skip(1).step_by(2) {
        let known = Member { size: member.size, used_at: NOW, proven: true };
        ledger.put_membership(&repository, &member.digest, known).await?;
    }
    for (now, first) in [(named, false), (proven, true)] {
        ledger.put_manifest(&repository, &manifest(5_000), &members, true, now).await?;
        for (number, member) in members.iter().enumerate() {
            let expected =
                Member { size: member.size, used_at: now, proven: number % 2 == 1 || (first && number == 0) };
            assert_eq!(ledger.blob(&repository, &member.digest).await?.member, Some(expected), "{number}");
        }
        let known = Member { size: members[0].size, used_at: now, proven: true };
        ledger.put_membership(&repository, &members[0].digest, known).await?;
    }
    Ok(())
}

fn listing(list: Option<List>) -> Listing {
    Listing { list, fresh_until: Timestamp(1 << 40), stale_until: NOW }
}

pub(crate) async fn gauges_are_read_one_by_one_and_many_at_once(storage: &Storage) -> Result<()> {
    // More than one request of DynamoDB may name.
    let mut written = BTreeMap::new();
    let mut keys = Vec::new();
    for number in 0..230 {
        let key = GaugeKey { upstream: format!("u{number}.test").parse()?, credential: "anonymous".to_owned() };
        let reading = Reading { remaining: number, at: Timestamp(number) };
        let quota = Quota { limit: 1000, reading, window_seconds: 60, source: None };
        let gauge = Gauge { quota: Some(quota), ..Gauge::default() };
        if number % 2 == 0 {
            let version = storage.ledger.swap(&key, None, &gauge).await?.context("it is new")?;
            written.insert(key.upstream.to_string(), Versioned { value: gauge, version });
        }
        let found = storage.ledger.get(&key).await?;
        assert_eq!(found.as_ref(), written.get(key.upstream.as_str()));
        keys.push(key);
    }
    // Another credential of the same upstream.
    keys.push(GaugeKey { credential: "robot".to_owned(), ..keys[0].clone() });
    let found = storage.ledger.get_all(&keys).await?.into_iter();
    let found: BTreeMap<_, _> = found.map(|(key, gauge)| (key.upstream.to_string(), gauge)).collect();
    assert_eq!(found, written);
    Ok(())
}

pub(crate) async fn a_list_is_read_as_it_was_put_last(storage: &Storage) -> Result<()> {
    let (ledger, repository, other) = (&storage.ledger, repository("a/b")?, repository("a")?);
    let tags = List::Tags(serde_json::from_str(r#"["A","b_1"]"#)?);
    let [subject, same] = [digest("subject"), digest("another")].map(ListKey::Referrers);
    let descriptor = serde_json::json!({
        "digest": digest("referrer"), "size": u64::MAX, "float": 1e300, "text": "\u{e9}\"\n", "none": null,
        // Deeper than attributes of DynamoDB may be nested.
        "deep": (0..40).fold(serde_json::Value::from(1), |inner, _| serde_json::json!([inner])),
    });
    // Text that a parser of JSON would write in another way.
    let referrers = List::Referrers(serde_json::from_str(&format!("[ {descriptor}, {{\"float\":1.50e+3}} ]"))?);
    // As long as a list may be.
    let name = "t".repeat(128);
    let longest = (0..MAX_LISTING_BYTES / 131 - 1).map(|number| format!("\"{number:04}{}\"", &name[4..]));
    let longest = List::Tags(serde_json::from_str(&format!("[{}]", longest.collect::<Vec<_>>().join(",")))?);
    for (key, lists) in [
        (ListKey::Tags, vec![Some(tags), None, Some(List::Tags(Tags::default())), Some(longest)]),
        (subject, vec![None, Some(referrers)]),
    ] {
        assert_eq!(ledger.listing(&repository, &key).await?, None);
        for list in lists {
            let listing = listing(list);
            ledger.put_listing(&repository, &key, &listing).await?;
            assert!(ledger.listing(&repository, &key).await?.as_ref() == Some(&listing), "{key:?}");
        }
        assert_eq!(ledger.listing(&other, &key).await?, None);
        assert_eq!(ledger.listing(&repository, &same).await?, None);
    }
    Ok(())
}

pub(crate) async fn a_manifest_is_read_byte_for_byte(storage: &Storage) -> Result<()> {
    let repository = repository("a")?;
    // Around the size from which a manifest does not fit into an item, and the largest there is.
    for size in [0, 5_000, 349_990, 350_000, 350_010, 400_000, 4 * 1024 * 1024 - 100] {
        let manifest = manifest(size);
        storage.ledger.put_manifest(&repository, &manifest, &[], true, NOW).await?;
        let read = storage.ledger.manifest(&repository, &manifest.digest).await?;
        let length = read.as_ref().map(|(read, _)| read.bytes.len());
        assert!(read == Some((manifest, NOW)), "a manifest of {size} bytes came back as {length:?}");
    }
    Ok(())
}

pub(crate) async fn a_manifest_can_be_put_twice(storage: &Storage) -> Result<()> {
    let repository = repository("a")?;
    for size in [5_000, 400_000] {
        let manifest = manifest(size);
        for _ in 0..2 {
            storage.ledger.put_manifest(&repository, &manifest, &members(3), true, NOW).await?;
            let read = storage.ledger.manifest(&repository, &manifest.digest).await?;
            assert!(read.is_some_and(|(read, _)| read == manifest));
        }
    }
    Ok(())
}

pub(crate) async fn a_manifest_belongs_to_the_repository_it_was_put_in(storage: &Storage) -> Result<()> {
    for size in [5_000, 400_000] {
        let manifest = manifest(size);
        storage.ledger.put_manifest(&repository("mine/a")?, &manifest, &[], true, NOW).await?;
        for other in ["mine", "mine/a/b", "mine/b"] {
            assert_eq!(storage.ledger.manifest(&repository(other)?, &manifest.digest).await?, None);
        }
    }
    Ok(())
}

pub(crate) async fn once_a_manifest_can_be_read_every_membership_can(storage: &Storage) -> Result<()> {
    let (repository, manifest, members) = (repository("a")?, manifest(5_000), members(137));
    // One digest twice: the configuration of an image may be one of its layers.
    let put: Vec<_> = members.iter().chain(members.first()).cloned().collect();
    let ledger = Arc::clone(&storage.ledger);
    let (there, written) = (repository.clone(), manifest.clone());
    let write = tokio::spawn(async move { ledger.put_manifest(&there, &written, &put, true, NOW).await });
    while !write.is_finished() && storage.ledger.manifest(&repository, &manifest.digest).await?.is_none() {
        tokio::task::yield_now().await;
    }
    for member in &members {
        let view = storage.ledger.blob(&repository, &member.digest).await?;
        assert_eq!(view.member, Some(Member { size: member.size, used_at: NOW, proven: false }));
    }
    write.await??;
    Ok(())
}

pub(crate) async fn a_membership_belongs_to_its_repository_and_a_blob_record_to_all(storage: &Storage) -> Result<()> {
    let (mine, other, digest) = (repository("mine")?, repository("other")?, digest("blob"));
    let member = Member { size: 7, used_at: NOW, proven: true };
    storage.ledger.put_membership(&mine, &digest, member).await?;
    storage.ledger.put_membership(&mine, &digest, member).await?;
    let view = storage.ledger.blob(&mine, &digest).await?;
    assert_eq!((view.member, view.record), (Some(member), None));
    assert!(storage.ledger.swap(&digest, None, &blob_record(1)).await?.is_some());
    let (mine, other) = (storage.ledger.blob(&mine, &digest).await?, storage.ledger.blob(&other, &digest).await?);
    assert_eq!((mine.member, other.member), (Some(member), None));
    assert!(mine.record.is_some() && mine.record == other.record);
    Ok(())
}

/// An image of these blobs, and so many bytes of an annotation.
fn image(blobs: &[Descriptor], annotation: usize) -> Manifest {
    let described: Vec<_> =
        blobs.iter().map(|blob| serde_json::json!({ "digest": blob.digest, "size": blob.size })).collect();
    let annotations = serde_json::json!({ "a": "x".repeat(annotation) });
    let body = serde_json::json!({ "config": described[0], "layers": described[1..], "annotations": annotations });
    let body = body.to_string();
    let digest = Digest::of(Algorithm::Sha256, body.as_bytes());
    Manifest { digest, media_type: MediaType::OciManifest, bytes: body.into() }
}

async fn entries(storage: &Storage) -> Result<Vec<Entry>> {
    let mut entries: Vec<Entry> = storage.ledger.entries().try_collect().await?;
    entries.sort_by_key(|entry| format!("{entry:?}"));
    Ok(entries)
}

/// One item of each kind, as entries.
async fn one_of_each(storage: &Storage) -> Result<Vec<Entry>> {
    let (ledger, repository, tag, digest) = (&storage.ledger, repository("a/b")?, "v1.2".parse()?, digest("blob"));
    let member = Member { size: 7, used_at: NOW, proven: true };
    ledger.put_membership(&repository, &digest, member).await?;
    ledger.swap(&ReferenceKey(&repository, &tag), None, &tag_record(1)).await?.context("it is new")?;
    ledger.swap(&digest, None, &blob_record(3)).await?.context("it is new")?;
    let fetched = Reference::Digest(digest.clone());
    ledger.swap(&ReferenceKey(&repository, &fetched), None, &tag_record(2)).await?.context("it is new")?;
    let mut expected =
        vec![Entry::Membership { repository: repository.clone(), digest: digest.clone(), size: 7, used_at: NOW }];
    ledger.swap(&HoldingKey(&repository), None, &Holding::nothing()).await?.context("it is new")?;
    let record = ledger.get(&HoldingKey(&repository)).await?.context("absent")?;
    expected.push(Entry::Holding { repository: repository.clone(), record });
    for reference in [tag, fetched] {
        let record = ledger.get(&ReferenceKey(&repository, &reference)).await?.context("absent")?;
        expected.push(Entry::Reference { repository: repository.clone(), reference, record });
    }
    let record = ledger.blob(&repository, &digest).await?.record.context("absent")?;
    expected.push(Entry::Blob { digest: digest.clone(), record });
    for key in [ListKey::Tags, ListKey::Referrers(digest.clone())] {
        ledger.put_listing(&repository, &key, &listing(None)).await?;
        expected.push(Entry::Listing { repository: repository.clone(), key, stale_until: NOW });
    }
    ledger.put_standing(&repository, Standing::Shown { at: Timestamp(1), until: NOW }).await?;
    expected.push(Entry::Standing { repository: repository.clone(), until: NOW });
    // Small, and too large for an item of DynamoDB.
    for (count, annotation) in [(2, 0), (MAX_NAMED, 400_000)] {
        let (members, used_at) = (members(count), Timestamp(NOW.0 + 1));
        let manifest = image(&members, annotation);
        ledger.put_manifest(&repository, &manifest, &[], true, used_at).await?;
        let names = members.into_iter().map(|member| member.digest).collect();
        // What is too large for an item counts where it lies.
        let inline = storage.is_embedded() || annotation == 0;
        let bytes = if inline { manifest.bytes.len() as u64 } else { 0 };
        let stored = StoredManifest { repository: repository.clone(), digest: manifest.digest, used_at, bytes, names };
        expected.push(Entry::Manifest(stored));
    }
    expected.sort_by_key(|entry| format!("{entry:?}"));
    Ok(expected)
}

pub(crate) async fn every_item_is_an_entry_once(storage: &Storage) -> Result<()> {
    assert_eq!(entries(storage).await?, []);
    let expected = one_of_each(storage).await?;
    assert!(entries(storage).await? == expected);
    // More than one page of a scan.
    let (repository, members) = (repository("many")?, members(2500));
    storage.ledger.put_manifest(&repository, &manifest(300_000), &members, true, NOW).await?;
    for size in 300_001..300_006 {
        storage.ledger.put_manifest(&repository, &manifest(size), &[], true, NOW).await?;
    }
    let all = entries(storage).await?;
    let many = |entry: &&Entry| matches!(entry, Entry::Membership { repository: whose, .. } if *whose == repository);
    assert_eq!(all.iter().filter(many).count(), 2500);
    assert_eq!(all.len(), expected.len() + 2500 + 6);
    // The last use of a manifest may be stored apart from it.
    let (since, now) = (Timestamp(NOW.0 + 1), Timestamp(NOW.0 + 2));
    for size in 300_000..300_006 {
        storage.ledger.touch_manifest(&repository, &manifest(size).digest, since, now).await?.context("absent")?;
    }
    let used = |entry: &&Entry| matches!(entry, Entry::Manifest(manifest) if manifest.used_at == now);
    let touched = entries(storage).await?;
    assert_eq!((touched.len(), touched.iter().filter(used).count()), (all.len(), 6));
    Ok(())
}

pub(crate) async fn the_use_of_a_manifest_is_written_only_where_it_was_used_before_then(
    storage: &Storage,
) -> Result<()> {
    let (ledger, repository) = (&storage.ledger, repository("a")?);
    for size in [5_000, 400_000] {
        let manifest = manifest(size);
        assert_eq!(ledger.touch_manifest(&repository, &manifest.digest, NOW, NOW).await?, None);
        assert_eq!(entries(storage).await?, [], "and there is none now");
        ledger.put_manifest(&repository, &manifest, &[], true, NOW).await?;
        let mut expected = NOW.0;
        for (since, now, written) in [(0, 10, false), (1, 11, true), (11, 12, false), (12, 14, true)] {
            let [since, now] = [since, now].map(|seconds| Timestamp(NOW.0 + seconds));
            expected = if written { now.0 } else { expected };
            let used_at = ledger.touch_manifest(&repository, &manifest.digest, since, now).await?;
            assert_eq!(used_at, Some(Timestamp(expected)));
            let entry = entries(storage).await?.pop().context("no entry")?;
            let Entry::Manifest(stored) = &entry else { panic!("{entry:?}") };
            assert_eq!(stored.used_at.0, expected);
        }
        let (read, used_at) = ledger.manifest(&repository, &manifest.digest).await?.context("absent")?;
        assert!(read == manifest && used_at.0 == expected, "{used_at:?}");
        for entry in entries(storage).await? {
            assert!(ledger.remove(&entry).await?);
        }
    }
    Ok(())
}

pub(crate) async fn an_entry_is_removed_only_while_it_is_what_was_seen(storage: &Storage) -> Result<()> {
    for entry in one_of_each(storage).await? {
        let mut other = entry.clone();
        match &mut other {
            Entry::Reference { record, .. } => record.version ^= 1,
            Entry::Blob { record, .. } => record.version ^= 1,
            Entry::Holding { record, .. } => record.version ^= 1,
            Entry::Manifest(manifest) => manifest.used_at.0 -= 1,
            Entry::Membership { used_at, .. } => used_at.0 -= 1,
            Entry::Listing { stale_until, .. } => stale_until.0 -= 1,
            Entry::Standing { until, .. } => until.0 -= 1,
        }
        let before = entries(storage).await?;
        assert!(!storage.ledger.remove(&other).await?, "{other:?}");
        assert!(entries(storage).await? == before);
        assert!(storage.ledger.remove(&entry).await?, "{entry:?}");
        assert!(!storage.ledger.remove(&entry).await?, "it is gone");
        assert!(entries(storage).await? == before.into_iter().filter(|left| *left != entry).collect::<Vec<_>>());
    }
    Ok(())
}
