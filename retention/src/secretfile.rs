//! Files that hold one secret: the root key, the signer of certificates.
//!
//! Invariant: such a file is there whole or not at all. Two processes that start together must not read half a key of each other, and one
//! that was killed while it wrote must not leave an empty file that stops every later start.

use std::fs::File;
use std::io::{Result, Seek as _, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use tempfile::NamedTempFile;

/// Writes `secret` to a new file in `path`, mode 0600, and forces file and folder entry to disk.
///
/// # Errors
/// The system's error; [`std::io::ErrorKind::AlreadyExists`] where `path` exists, which is then untouched.
pub(crate) fn create(path: &Path, secret: &[u8]) -> Result<()> {
    written(path, secret)?.persist_noclobber(path).map_err(|error| error.error)?;
    sync_folder(path)
}

/// Puts a new file with `secret` in the place of the one in `path`, and overwrites the bytes of the old one. Who replaces holds
/// [`locked`]; who reads asks [`is_current`] afterwards.
///
/// # Errors
/// The system's error; the old file may still be in its place.
pub(crate) fn replace(path: &Path, old: &mut File, secret: &[u8]) -> Result<()> {
    let length = old.metadata()?.len();
    written(path, secret)?.persist(path).map_err(|error| error.error)?;
    sync_folder(path)?;
    let zeros = vec![0u8; usize::try_from(length).unwrap_or(0)];
    old.rewind()?;
    old.write_all(&zeros)?;
    old.sync_all()
}

/// Opens the file in `path` for [`replace`], locked against every other process that would, until it is dropped.
///
/// # Errors
/// The system's error.
pub(crate) fn locked(path: &Path) -> Result<File> {
    loop {
        let file = File::options().read(true).write(true).open(path)?;
        file.lock()?;
        // The one before may have replaced it while this one waited: then the lock is on a file that is no longer there.
        if is_current(path, &file)? {
            return Ok(file);
        }
    }
}

/// Whether `file` is still the one in `path`: then what was read from it before was not being overwritten.
///
/// # Errors
/// The system's error.
pub(crate) fn is_current(path: &Path, file: &File) -> Result<bool> {
    let (there, here) = (std::fs::metadata(path)?, file.metadata()?);
    Ok((there.dev(), there.ino()) == (here.dev(), here.ino()))
}

/// A new file beside `path` that holds `secret`, forced to disk.
fn written(path: &Path, secret: &[u8]) -> Result<NamedTempFile> {
    // `tempfile` makes its files with mode 0600.
    let mut file = NamedTempFile::new_in(folder(path))?;
    file.write_all(secret)?;
    file.as_file().sync_all()?;
    Ok(file)
}

/// The entry must survive a power cut as well, or everything sealed under the key is lost.
fn sync_folder(path: &Path) -> Result<()> {
    File::open(folder(path))?.sync_all()
}

fn folder(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;
    use std::sync::Barrier;

    use super::*;

    #[test]
    fn of_many_that_create_one_file_one_wins_and_nobody_reads_half_of_it() {
        const WRITERS: u8 = 8;
        for _ in 0..50 {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("root.key");
            let start = Barrier::new(usize::from(WRITERS));
            let won: usize = std::thread::scope(|scope| {
                let writers: Vec<_> = (0..WRITERS)
                    .map(|n| {
                        let (path, start) = (&path, &start);
                        scope.spawn(move || {
                            start.wait();
                            let made = create(path, &[n; 32]);
                            let read = std::fs::read(path).unwrap();
                            assert!(read.len() == 32 && read.iter().all(|byte| *byte == read[0]), "half a secret");
                            match made {
                                Ok(()) => {
                                    assert_eq!(read[0], n);
                                    1
                                }
                                Err(error) => {
                                    assert_eq!(error.kind(), std::io::ErrorKind::AlreadyExists);
                                    0
                                }
                            }
                        })
                    })
                    .collect();
                writers.into_iter().map(|writer| writer.join().unwrap()).sum()
            });
            assert_eq!(won, 1);
            assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
            assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "no copy of a secret is left beside");
        }
    }
}
