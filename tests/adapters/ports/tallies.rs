//! Clauses of `Tallies`.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use futures_util::StreamExt as _;
use futures_util::future::try_join_all;
use stopover::journal::{Metric, Slot, Tally};
use stopover::oci::UpstreamId;
use stopover::ports::MOST_SUMS;
use stopover::values::time::Timestamp;

use super::storage::{NOW, Storage};

fn upstream(number: usize) -> Result<UpstreamId> {
    Ok(format!("u{number}.test").parse()?)
}

async fn read(storage: &Storage, slots: &[Slot]) -> Result<BTreeMap<Slot, Tally>> {
    Ok(storage.ledger.tallies(slots).await?.into_iter().collect())
}

pub(crate) async fn sums_are_those_of_all_that_add_to_them_at_once(storage: &Storage) -> Result<()> {
    let ([hour, day], ledger) = (Slot::at(NOW), &storage.ledger);
    let before = Slot::at(Timestamp(NOW.0 - 1))[0];
    assert_eq!(read(storage, &[hour, day, before]).await?, BTreeMap::new());
    let mut tally = Tally::default();
    tally.add(&upstream(1)?, Metric::Hits, 3);
    tally.add(&upstream(2)?, Metric::SavedBytes, 1 << 50);
    let adds = (0..10).flat_map(|_| [hour, day]).map(|slot| ledger.add_tally(slot, &tally));
    try_join_all(adds).await?;
    let mut other = Tally::default();
    other.add(&upstream(1)?, Metric::Fills, 1);
    ledger.add_tally(hour, &other).await?;
    let mut expected = Tally::default();
    expected.add(&upstream(1)?, Metric::Hits, 30);
    expected.add(&upstream(2)?, Metric::SavedBytes, 10 << 50);
    let of_day = expected.clone();
    expected.merge(&other);
    let expected = BTreeMap::from([(hour, expected), (day, of_day)]);
    assert_eq!(read(storage, &[before, hour, day]).await?, expected);
    assert_eq!(read(storage, &[before]).await?, BTreeMap::new());
    assert!(ledger.entries().next().await.is_none(), "no sweep sees them");
    Ok(())
}

pub(crate) async fn as_many_sums_as_may_be_are_added_at_once(storage: &Storage) -> Result<()> {
    let (slot, mut tally) = (Slot::at(NOW)[1], Tally::default());
    for number in 0..MOST_SUMS {
        tally.add(&upstream(number)?, Metric::FailedFills, number as u64 + 1);
    }
    storage.ledger.add_tally(slot, &tally).await?;
    assert_eq!(read(storage, &[slot]).await?, BTreeMap::from([(slot, tally)]));
    // All that are ever read together.
    let slots: Vec<Slot> = Slot::hours_until(NOW).chain(Slot::days_until(NOW)).collect();
    assert_eq!(read(storage, &slots).await?.len(), 1);
    Ok(())
}

pub(crate) async fn sums_of_what_is_over_go(storage: &Storage) -> Result<()> {
    let mut tally = Tally::default();
    tally.add(&upstream(1)?, Metric::Hits, 1);
    let shown: Vec<Slot> = Slot::hours_until(NOW).chain(Slot::days_until(NOW)).collect();
    let old = Timestamp(NOW.0 - 40 * 24 * 3600);
    for slot in Slot::at(old).iter().chain(&shown) {
        storage.ledger.add_tally(*slot, &tally).await?;
    }
    assert_eq!(read(storage, &shown).await?.len(), shown.len(), "what is shown stays");
    if storage.is_embedded() {
        assert_eq!(read(storage, &Slot::at(old)).await?, BTreeMap::new());
        return Ok(());
    }
    // DynamoDB deletes them at this time.
    let (client, table) = (storage.endpoints().dynamodb(), storage.endpoints().table());
    let items: Vec<_> = client.scan().table_name(table).into_paginator().items().send().try_collect().await?;
    assert_eq!(items.len(), shown.len() + 2);
    for item in items {
        let slot = Slot::parse(item["sk"].as_s().ok().context("no sort key")?).context("no slot")?;
        assert_eq!(item["expires_at"].as_n().ok(), Some(&slot.kept_until().0.to_string()));
    }
    Ok(())
}
