//! The embedded adapters: one directory holds everything, and one process at a time owns it.
//!
//! ```text
//! <data>/lock                                     held while a process uses the directory
//! <data>/format                                   the number of its format, and the release that brought it
//! <data>/operator.sock                            where operators of this machine ask, while the process serves
//! <data>/signing_keys                             what tokens are signed with, where the configuration has nothing
//! <data>/ledger.redb                              tag records, manifests, memberships, claims, requests
//! <data>/blobs/<algorithm>/<2 hex>/<hex>          published blobs, whole and verified
//! <data>/unpublished/<hex>.<random>               bytes on their way; a start keeps those with a checkpoint
//! ```

mod board;
mod files;
mod format;
mod images;
mod inventory;
mod ledger;
mod order;
mod queue;
mod store;
mod tallies;

use std::fs::{self, File, TryLockError};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use futures_util::FutureExt as _;
use tokio::net::UnixListener;
use tokio::time::{Instant, interval, interval_at};
use tokio_util::task::AbortOnDropHandle;

pub use files::{Files, KEPT_OPEN};
pub use ledger::EmbeddedLedger;
pub use queue::Queue;
pub use store::is_at_work;

use files::absent;
use images::Images;

use crate::access::token::TokenKeys;
use crate::cache::Cache;
use crate::config::{Config, SecretSource};
use crate::errors::chain;
use crate::ports::{Blobs as _, Storage};
use crate::values::secret::{OTHERS_USE, OTHERS_WRITE, Secret, read_own, refuse_of_others};
use crate::values::time::Clock;

/// A cache on one machine.
pub struct Local {
    /// The cache on top of this storage.
    pub cache: Arc<Cache>,
    queue: Arc<Queue>,
    images: Arc<Images>,
    sweeper: AbortOnDropHandle<()>,
    writer: AbortOnDropHandle<()>,
    lock: Lock,
}

impl Local {
    /// Takes the data directory, which it creates if needed, and continues with the fills that were requested before.
    /// Fails with a sentence for the operator if another process owns the directory, or a newer release has written it.
    pub async fn open(mut config: Config, clock: Clock) -> anyhow::Result<Self> {
        let data = config.data_dir.clone();
        let lock = take(&data)?;
        format::check(&data)?;
        // By this file operators were known before there was a socket for them.
        let _ = fs::remove_file(data.join("operator_secret"));
        if let Some(access) = config.access.as_mut().filter(|access| access.has_logins())
            && access.signing_keys.is_none()
        {
            let made = Secret::new(made_once(&data.join("signing_keys"), OTHERS_USE, TokenKeys::make)?);
            access.signing_keys = Some(SecretSource::Text(made));
        }
        let files = Arc::new(Files::open(&data)?);
        let ledger = Arc::new(
            EmbeddedLedger::open(&data.join("ledger.redb"))
                .with_context(|| format!("cannot open the ledger in {}", data.display()))?,
        );
        // Claims belong to a process that is gone: this one owns the directory now, and continues from checkpoints.
        ledger.release_claims().await?;
        files.abandon(&ledger.checkpoints()?, Duration::ZERO).await?;
        let limits = config.upstreams.iter().map(|(id, upstream)| (id.clone(), upstream.fills.get())).collect();
        ledger.forget_given_up(clock.now()).await?;
        let queue = Arc::new(Queue::new(Arc::clone(&ledger), clock.clone(), limits));
        let images = Arc::new(Images::new(Arc::clone(&ledger)));
        let handle = Arc::new(queue::Handle(Arc::clone(&queue), Arc::clone(&images)));
        let storage = Storage { blobs: files, ledger: Arc::clone(&ledger) as _, fills: handle };
        let cache = Cache::new(config, clock, storage, None).context("cannot start")?;
        let cache = Arc::new(cache);
        queue.start(&cache)?;
        images.start(&cache)?;
        let (sweeper, writer) = (sweep(&cache, &ledger), write_counts(&cache));
        Ok(Self { cache, queue, images, sweeper, writer, lock })
    }

    /// Prefetches what `[[schedule]]` says, as long as this cache runs.
    pub fn keep_schedules(&self) {
        self.images.keep_schedules(&self.cache);
    }

    /// Listens where operators of this machine ask: at a socket that only the user of this process can open.
    pub fn listen_to_operators(&self) -> anyhow::Result<UnixListener> {
        let path = operator_socket(&self.lock.data);
        let listen = || {
            // This process has the directory: a socket that is there was left behind by one that was killed.
            absent(fs::remove_file(&path))?;
            let listener = UnixListener::bind(&path)?;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).map(|()| listener)
        };
        listen().with_context(|| {
            format!(
                "cannot listen to operators at {}, a path that may have 107 bytes on a file system that knows sockets; \
                 name another directory, or a link to this one, with --data-dir",
                path.display()
            )
        })
    }

    /// Stops filling, and writes down what was counted: running fills get `grace` to finish. The others are parked: the next start continues them. No other
    /// process can use the directory until the lock that this returns is dropped: answers may still be under way.
    pub async fn stop(self, grace: Duration) -> Lock {
        self.images.stop().await;
        ended(self.sweeper).await;
        self.queue.stop(grace).await;
        // One that is under way is waited for: broken off, it would be written twice.
        self.cache.operate.write_counts().await;
        ended(self.writer).await;
        self.lock
    }

    /// Waits until no image and no fill is requested or running.
    pub async fn settled(&self) {
        self.images.settled().await;
        self.queue.settled().await;
    }
}

/// When a process sweeps first, and how often then.
const SWEEPS: (Duration, Duration) = (Duration::from_mins(5), Duration::from_hours(1));

/// How often what was counted is written down: a crash loses that much of it.
const COUNTS: Duration = Duration::from_mins(5);

/// Writes down what is counted, again and again.
fn write_counts(cache: &Arc<Cache>) -> AbortOnDropHandle<()> {
    let (mut ticks, cache) = (interval(COUNTS), Arc::downgrade(cache));
    AbortOnDropHandle::new(tokio::spawn(async move {
        loop {
            ticks.tick().await;
            let Some(cache) = cache.upgrade() else { return };
            cache.operate.write_counts().await;
        }
    }))
}

/// Sweeps, again and again. The next sweep completes one that was broken off.
fn sweep(cache: &Arc<Cache>, ledger: &Arc<EmbeddedLedger>) -> AbortOnDropHandle<()> {
    let (first, every) = SWEEPS;
    let mut ticks = interval_at(Instant::now() + first, every);
    let (cache, ledger) = (Arc::downgrade(cache), Arc::downgrade(ledger));
    AbortOnDropHandle::new(tokio::spawn(async move {
        loop {
            ticks.tick().await;
            let (Some(cache), Some(ledger)) = (cache.upgrade(), ledger.upgrade()) else { return };
            // A sweep that panics is logged where it does, and the next one comes all the same.
            if let Ok(Err(error)) = AssertUnwindSafe(cache.operate.sweep(false)).catch_unwind().await {
                tracing::warn!(error = %chain(&error), "the sweep ended early");
            }
            if let Err(error) = ledger.forget_given_up(cache.core.clock.now()).await {
                tracing::warn!(error = %chain(&error), "fills that were given up long ago are still remembered");
            }
        }
    }))
}

/// Ends a task, and returns once it holds nothing of the cache any more.
async fn ended(task: AbortOnDropHandle<()>) {
    task.abort();
    let _ = task.await;
}

/// The path of the operators' socket in a data directory.
pub fn operator_socket(data: &Path) -> PathBuf {
    data.join("operator.sock")
}

/// The data directory, as long as this process has it.
pub struct Lock {
    data: PathBuf,
    _file: File,
}

impl Drop for Lock {
    fn drop(&mut self) {
        // The file is closed after this: the next process makes a socket of its own.
        let _ = fs::remove_file(operator_socket(&self.data));
    }
}

/// Reads a file, unless others have a permission that is `denied`. If there is no file, makes one, which only its owner
/// may read.
fn made_once(path: &Path, denied: u32, make: fn() -> Option<String>) -> anyhow::Result<String> {
    let denied = if path.parent().is_some_and(is_shared) { denied & 0o007 } else { denied };
    let read = absent(read_own(path, denied)).with_context(|| format!("cannot read {}", path.display()))?;
    if let Some(text) = read {
        return Ok(text);
    }
    let text = make().context("the system gives no randomness for a secret")?;
    // Written whole or not at all: the next start would fail on half of it.
    let unfinished = path.with_extension("unfinished");
    let write = || {
        // A file that was left behind may have other permissions.
        absent(fs::remove_file(&unfinished))?;
        let mut file = File::options().create_new(true).write(true).mode(0o600).open(&unfinished)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&unfinished, path)
    };
    write().with_context(|| format!("cannot write {}", path.display()))?;
    Ok(text)
}

/// Whether Kubernetes has given a volume to a group of the pod (`fsGroup`): directories are then setgid, and the group
/// may write all files in them.
fn is_shared(directory: &Path) -> bool {
    let groups = rustix::process::getgroups().unwrap_or_default();
    fs::metadata(directory).is_ok_and(|directory| {
        directory.mode() & 0o2000 != 0 && groups.iter().any(|group| group.as_raw() == directory.gid())
    })
}

/// Refuses a directory in which another user may have put what this process would trust.
fn refuse_directory_of_others(directory: &Path) -> io::Result<()> {
    let metadata = fs::metadata(directory)?;
    if metadata.mode() & 0o1000 == 0 {
        let denied = if is_shared(directory) { OTHERS_WRITE & 0o007 } else { OTHERS_WRITE };
        return refuse_of_others(directory, &metadata, denied);
    }
    // In a sticky directory, as a new tmpfs is one, others cannot replace what is ours: nothing of theirs may be there.
    refuse_of_others(directory, &metadata, 0)?;
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        refuse_of_others(&entry.path(), &entry.metadata()?, 0)?;
    }
    Ok(())
}

/// What to do about a data directory that cannot be used.
const ELSEWHERE: &str = "name another directory with --data-dir, or data_dir in stopover.toml";

fn take(data: &Path) -> anyhow::Result<Lock> {
    let there = data.exists();
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(data)
        .with_context(|| format!("cannot create the data directory {}; {ELSEWHERE}", data.display()))?;
    refuse_directory_of_others(data).with_context(|| format!("cannot use the data directory {}", data.display()))?;
    // Only a warning, because the operator may want it: for a group that reads backups, say.
    if there && fs::metadata(data).is_ok_and(|directory| directory.permissions().mode() & 0o077 != 0) {
        tracing::warn!(
            "others than its owner may read the data directory {0}, and what is private in it: chmod go= {0}",
            data.display()
        );
    }
    let path = data.join("lock");
    let lock = File::options()
        .create(true)
        .write(true)
        .truncate(false)
        .open(&path)
        .with_context(|| format!("cannot write to the data directory {}; {ELSEWHERE}", data.display()))?;
    match lock.try_lock() {
        Ok(()) => Ok(Lock { data: data.to_owned(), _file: lock }),
        Err(TryLockError::WouldBlock) => {
            bail!("another stopover is using the data directory {}: stop that one, or {ELSEWHERE}", data.display())
        }
        Err(TryLockError::Error(error)) => {
            Err(error).with_context(|| format!("cannot lock the data directory {}", data.display()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Cold;
    use crate::journal::{Metric, Slot};
    use crate::values::time::Timestamp;

    #[tokio::test]
    async fn what_is_counted_is_written_down_every_five_minutes_and_at_the_end() {
        let data = tempfile::tempdir().unwrap();
        let config = Config::load(None, Cold::Follow, |_| Ok(String::new())).unwrap();
        let config = Config { data_dir: data.path().join("data"), ..config };
        let clock = Clock::manual(Timestamp(1_800_000_000));
        let [hour, day] = Slot::at(clock.now());
        let hits = async |local: &Local| {
            let written = local.cache.core.storage.ledger.tallies(&[hour, day]).await.unwrap();
            written.iter().map(|(_, tally)| tally.total(Metric::Hits)).collect::<Vec<_>>()
        };
        let count = |local: &Local| {
            local.cache.core.journal.of(Some(&"docker.io".parse().unwrap())).add(Metric::Hits, 1);
        };
        let local = Local::open(config.clone(), clock.clone()).await.unwrap();
        count(&local);
        tokio::time::pause();
        tokio::time::advance(COUNTS).await;
        // Time that stands still goes on by itself while another thread writes.
        tokio::time::resume();
        let written = async {
            while hits(&local).await != [1, 1] {
                // The reason for this pause: no event says that a write is done.
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_mins(1), written).await.unwrap();
        count(&local);
        assert_eq!(hits(&local).await, [1, 1]);
        local.stop(Duration::ZERO).await;
        let local = Local::open(config, clock).await.unwrap();
        assert_eq!(hits(&local).await, [2, 2]);
        local.stop(Duration::ZERO).await;
    }
}
