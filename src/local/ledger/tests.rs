use std::fs;
use std::io::{Seek as _, SeekFrom, Write as _};

use futures_util::FutureExt as _;

use super::*;
use crate::oci::{Algorithm, Reference};
use crate::records::Lease;

const NOW: Timestamp = Timestamp(1_800_000_000);

fn repository() -> Repository {
    Repository { upstream: "test.local".parse().unwrap(), name: "a".parse().unwrap() }
}

#[tokio::test]
async fn what_a_dead_process_held_is_free_at_the_next_start() {
    let data = tempfile::tempdir().unwrap();
    let (path, digest) = (data.path().join("ledger.redb"), Digest::of(Algorithm::Sha256, b"layer"));
    let (tag, fetched) = ("1".parse().unwrap(), Reference::Digest(digest.clone()));
    let ledger = EmbeddedLedger::open(&path).unwrap();
    let lease = Some(Lease { owner: "the dead".into(), until: NOW.plus(crate::records::tag::LEASE) });
    let leased = TagRecord { observed: None, previous: None, checked_at: NOW, fresh_until: NOW, lease };
    let mut versions = Vec::new();
    for reference in [&tag, &fetched] {
        versions.push(ledger.swap(&ReferenceKey(&repository(), reference), None, &leased).await.unwrap().unwrap());
    }
    let state = BlobState::Claimed { owner: "the dead".into(), until: NOW };
    ledger.swap(&digest, None, &BlobRecord::new(state)).await.unwrap().unwrap();
    drop(ledger);
    let ledger = EmbeddedLedger::open(&path).unwrap();
    ledger.release_claims().await.unwrap();
    for (reference, before) in [&tag, &fetched].into_iter().zip(versions) {
        let record = ledger.get(&ReferenceKey(&repository(), reference)).await.unwrap().unwrap();
        assert_eq!((record.value.lease, record.version == before), (None, false));
    }
    let blob = ledger.blob(&repository(), &digest).await.unwrap().record.unwrap();
    assert_eq!(blob.value.state, BlobState::Absent);
}

#[tokio::test]
async fn a_new_ledger_is_there_whole_or_not_at_all() {
    let data = tempfile::tempdir().unwrap();
    let path = data.path().join("ledger.redb");
    // What a power cut may leave of one that was being made.
    fs::write(path.with_extension("unfinished"), [7; 5000]).unwrap();
    let ledger = EmbeddedLedger::open(&path).unwrap();
    assert!(!path.with_extension("unfinished").exists());
    assert!(ledger.get(&RobotsKey).await.unwrap().is_none());
}

#[tokio::test]
async fn a_damaged_ledger_is_an_error_that_says_what_to_do_and_no_panic() {
    let data = tempfile::tempdir().unwrap();
    let path = data.path().join("ledger.redb");
    let ledger = EmbeddedLedger::open(&path).unwrap();
    for number in 0..2000 {
        let digest = Digest::of(Algorithm::Sha256, format!("{number}").as_bytes());
        ledger.swap(&digest, None, &BlobRecord::new(BlobState::Absent)).now_or_never();
    }
    let last = Digest::of(Algorithm::Sha256, b"last");
    ledger.swap(&last, None, &BlobRecord::new(BlobState::Absent)).await.unwrap();
    drop(ledger);
    let whole = fs::read(&path).unwrap();
    let mut found = 0;
    for part in 1..8_u64 {
        fs::write(&path, &whole).unwrap();
        let mut file = fs::File::options().write(true).open(&path).unwrap();
        let size = whole.len() as u64;
        file.seek(SeekFrom::Start(size * part / 8)).unwrap();
        file.write_all(&vec![0xa5; usize::try_from(size / 8).unwrap()]).unwrap();
        drop(file);
        let opened = async {
            let ledger = EmbeddedLedger::open(&path).map_err(|error| format!("{error:#}"))?;
            ledger.release_claims().await.map_err(|error| chain(&error))
        };
        if let Err(text) = opened.await {
            assert!(text.contains("is damaged: restore it from a backup") && text.contains("move it away"), "{text}");
            assert!(text.contains(&path.display().to_string()), "{text}");
            found += 1;
        }
    }
    assert!(found > 0, "nothing of it was read");
    fs::rename(&path, data.path().join("away")).unwrap();
    EmbeddedLedger::open(&path).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_is_acknowledged_is_what_is_read_however_many_read_meanwhile() {
    let data = tempfile::tempdir().unwrap();
    let ledger = std::sync::Arc::new(EmbeddedLedger::open(&data.path().join("ledger.redb")).unwrap());
    let digest = Digest::of(Algorithm::Sha256, b"layer");
    let readers: Vec<_> = (0..3)
        .map(|_| {
            let (ledger, digest) = (std::sync::Arc::clone(&ledger), digest.clone());
            tokio::spawn(async move {
                loop {
                    ledger.blob(&repository(), &digest).await.unwrap();
                    tokio::task::yield_now().await;
                }
            })
        })
        .collect();
    let mut version = None;
    for number in 0..100 {
        let record = BlobRecord::new(BlobState::Claimed { owner: number.to_string(), until: NOW });
        version = ledger.swap(&digest, version, &record).await.unwrap();
        let read = ledger.blob(&repository(), &digest).await.unwrap().record.unwrap();
        assert_eq!((read.value, Some(read.version)), (record, version));
    }
    let record = ledger.blob(&repository(), &digest).await.unwrap().record.unwrap();
    assert!(ledger.remove(&Entry::Blob { digest: digest.clone(), record }).await.unwrap());
    assert_eq!(ledger.blob(&repository(), &digest).await.unwrap().record, None);
    readers.iter().for_each(tokio::task::JoinHandle::abort);
}
