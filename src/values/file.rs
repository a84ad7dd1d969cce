//! Opening and reading files where a thread must not wait for a disk.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use bytes::Bytes;

/// Opens what the kernel has looked up lately: to hand that to another thread would cost more than to open it. `None`: it
/// may have to wait for the disk, or there is no such file.
#[cfg(all(feature = "local", target_os = "linux"))]
pub(crate) fn open_at_once(path: &std::path::Path) -> Option<File> {
    use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat2};
    openat2(CWD, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty(), ResolveFlags::CACHED).ok().map(File::from)
}

#[cfg(all(feature = "local", not(target_os = "linux")))]
pub(crate) fn open_at_once(_: &std::path::Path) -> Option<File> {
    None
}

/// Reads a part of a file: at once what the kernel has in memory, in another thread what may have to wait for the disk.
pub(crate) async fn read(file: &Arc<File>, part: &Range<u64>) -> io::Result<Bytes> {
    let (offset, length) = (part.start, part.end - part.start);
    if let Some(bytes) = read_at_once(file, offset, length) {
        return Ok(bytes);
    }
    let (file, mut bytes) = (Arc::clone(file), vec![0; usize::try_from(length).map_err(io::Error::other)?]);
    let read = move || {
        file.read_exact_at(&mut bytes, offset)?;
        Ok(Bytes::from(bytes))
    };
    tokio::task::spawn_blocking(read).await.map_err(io::Error::other)?
}

/// Reads what the kernel has in memory: to hand that to another thread would cost more than to read it. `None`: it may
/// have to wait for the disk.
#[cfg(all(feature = "local", target_os = "linux"))]
pub(crate) fn read_at_once(file: &File, offset: u64, length: u64) -> Option<Bytes> {
    let mut bytes = vec![0; usize::try_from(length).ok()?];
    let (into, flags) = (&mut [io::IoSliceMut::new(&mut bytes)], rustix::io::ReadWriteFlags::NOWAIT);
    let read = rustix::io::preadv2(file, into, offset, flags).ok()?;
    (read == bytes.len()).then(|| bytes.into())
}

#[cfg(not(all(feature = "local", target_os = "linux")))]
pub(crate) fn read_at_once(_: &File, _: u64, _: u64) -> Option<Bytes> {
    None
}
