//! Clauses of `Inventory`.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result};
use stopover::oci::{Digest, Reference, Repository, Tag};
use stopover::ports::Section;
use stopover::records::{Holding, HoldingKey, ReferenceKey, TagRecord};
use stopover::values::time::Timestamp;

use super::ledger::{blob_record, tag_record};
use super::storage::{NOW, Storage, digest, manifest, repository};

fn holding(tags: u64) -> Holding {
    let names = (0..tags.min(3)).map(|number| format!("v{number}").parse().expect("a tag")).collect();
    Holding { tags, names, bytes: u64::MAX, shared_bytes: Some(1 << 60), used_at: NOW, counted: true }
}

pub(crate) async fn what_is_stored_of_a_repository_is_read_as_it_was_written(storage: &Storage) -> Result<()> {
    let (ledger, repository, other) = (&storage.ledger, repository("a/b")?, repository("a")?);
    assert_eq!(ledger.get(&HoldingKey(&repository)).await?, None);
    assert_eq!(
        ledger.swap(&HoldingKey(&repository), Some(1), &holding(1)).await?,
        None,
        "there is none with a version"
    );
    let mut version = None;
    for holding in [Holding::nothing(), holding(3), Holding { shared_bytes: None, ..holding(9) }] {
        let written = ledger.swap(&HoldingKey(&repository), version, &holding).await?;
        assert!(written.is_some());
        assert_eq!(
            ledger.swap(&HoldingKey(&repository), version, &Holding::nothing()).await?,
            None,
            "it was overtaken"
        );
        let read = ledger.get(&HoldingKey(&repository)).await?.context("absent")?;
        assert_eq!((read.value, Some(read.version)), (holding, written));
        version = written;
    }
    assert_eq!(ledger.get(&HoldingKey(&other)).await?, None);
    Ok(())
}

/// The names of all pages.
async fn listed(storage: &Storage, prefix: &str, most: usize) -> Result<Vec<String>> {
    let (mut names, mut after) = (Vec::new(), None);
    loop {
        let section = Section { prefix: prefix.to_owned(), after: after.clone(), most };
        let page = storage.ledger.holdings(&section).await?;
        assert!(page.len() <= most);
        names.extend(page.iter().map(|(repository, _)| repository.to_string()));
        if page.len() < most {
            return Ok(names);
        }
        after = names.last().cloned();
    }
}

pub(crate) async fn repositories_are_listed_by_name_from_page_to_page(storage: &Storage) -> Result<()> {
    assert_eq!(listed(storage, "", 10).await?, [""; 0]);
    let mut all = BTreeSet::new();
    for (upstream, name) in [("a.test", "a"), ("a.test", "a/b"), ("a.test", "a-b"), ("a.test", "a.b"), ("a.test", "a0")]
        .into_iter()
        .chain([("a.test", "a__b"), ("a.test", "b/c/d"), ("b.test", "a"), ("0.test", "z"), ("a", "a")])
    {
        let repository = Repository { upstream: upstream.parse()?, name: name.parse()? };
        storage.ledger.swap(&HoldingKey(&repository), None, &holding(1)).await?.context("it is new")?;
        all.insert(repository.to_string());
    }
    // Nothing else is listed.
    let other = repository("not-listed")?;
    storage.ledger.put_manifest(&other, &manifest(5_000), &[], false, NOW).await?;
    for most in [1, 2, 3, 100] {
        assert_eq!(listed(storage, "", most).await?, all.iter().cloned().collect::<Vec<_>>(), "{most}");
        for prefix in ["a", "a.test/", "a.test/a", "a.test/a/b", "b.test/a", "a.test/x", "~"] {
            let expected = all.iter().filter(|name| name.starts_with(prefix)).cloned().collect::<Vec<_>>();
            assert_eq!(listed(storage, prefix, most).await?, expected, "{prefix} {most}");
        }
    }
    // Behind what is not there, before the prefix, and behind all that begins with it.
    for (after, expected) in [("a.test/aa", "a.test/b/c/d"), ("0", "a.test/a"), ("a.test/~", "")] {
        let (prefix, after) = ("a.test/".to_owned(), Some(after.to_owned()));
        let page = storage.ledger.holdings(&Section { prefix, after, most: 1 }).await?;
        assert_eq!(page.first().map(|(name, _)| name.to_string()).unwrap_or_default(), expected);
    }
    Ok(())
}

pub(crate) async fn tags_are_listed_by_name_and_digests_are_not_among_them(storage: &Storage) -> Result<()> {
    let (ledger, repository, other) = (&storage.ledger, repository("a")?, repository("a/b")?);
    let mut all: BTreeMap<Tag, TagRecord> = BTreeMap::new();
    for (number, tag) in
        ["latest", "1.2", "1.10", "V1", "_x", "zz", "sha256", "sha256-1", "t-1"].into_iter().enumerate()
    {
        let record = tag_record(number as u64);
        ledger.swap(&ReferenceKey(&repository, &tag.parse()?), None, &record).await?.context("it is new")?;
        all.insert(tag.parse()?, record);
    }
    for number in 0..30 {
        let asked = Reference::Digest(digest(&format!("asked {number}")));
        ledger.swap(&ReferenceKey(&repository, &asked), None, &tag_record(1)).await?.context("it is new")?;
    }
    ledger.swap(&ReferenceKey(&other, &"other".parse()?), None, &tag_record(1)).await?.context("it is new")?;
    for most in [1, 2, 100] {
        let (mut found, mut after) = (Vec::new(), None);
        loop {
            let page = ledger.tags(&repository, after.as_ref(), most).await?;
            found.extend(page.clone());
            after = page.last().map(|(tag, _)| tag.clone());
            if page.len() < most {
                break;
            }
        }
        assert_eq!(found, all.clone().into_iter().collect::<Vec<_>>(), "{most}");
    }
    Ok(())
}

pub(crate) async fn manifests_and_blobs_are_read_together(storage: &Storage) -> Result<()> {
    let (ledger, repository) = (&storage.ledger, repository("a")?);
    let manifests: Vec<_> = (0..60).map(|number| manifest(1_000 + number)).collect();
    for manifest in &manifests {
        ledger.put_manifest(&repository, manifest, &[], false, NOW).await?;
    }
    let later = Timestamp(NOW.0 + 1);
    ledger.touch_manifest(&repository, &manifests[7].digest, later, later).await?.context("absent")?;
    let asked: Vec<_> = manifests.iter().map(|one| one.digest.clone()).chain([digest("none")]).collect();
    let mut found = ledger.manifests(&repository, &asked).await?;
    found.sort_by_key(|(manifest, _)| manifest.bytes.len());
    let used = |number: usize| if number == 7 { later } else { NOW };
    let expected = manifests.into_iter().enumerate().map(|(number, manifest)| (manifest, used(number)));
    assert!(found == expected.collect::<Vec<_>>());

    let blobs: BTreeMap<_, _> =
        (0..120).map(|number| (digest(&format!("blob {number}")), blob_record(number))).collect();
    for (digest, record) in &blobs {
        ledger.swap(digest, None, record).await?.context("it is new")?;
    }
    let asked: Vec<_> = blobs.keys().cloned().chain([digest("none")]).collect();
    let read = ledger.get_all(&asked).await?.into_iter().map(|(digest, record)| (digest, record.value));
    assert_eq!(read.collect::<BTreeMap<_, _>>(), blobs);
    assert!(ledger.get_all(&[] as &[Digest]).await?.is_empty() && ledger.manifests(&repository, &[]).await?.is_empty());
    Ok(())
}
