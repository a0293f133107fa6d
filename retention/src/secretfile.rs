//! Files that hold one secret: the root key, the signer of certificates.
//!
//! Invariant: such a file is there whole or not at all. Two processes that start together must not read half a key of each other, and one
//! that was killed while it wrote must not leave an empty file that stops every later start.

use std::fs::File;
use std::io::{Result, Write as _};
use std::path::Path;

/// Writes `secret` to a new file in `path`, mode 0600, and forces file and folder entry to disk.
///
/// # Errors
/// The system's error; [`std::io::ErrorKind::AlreadyExists`] where `path` exists, which is then untouched.
pub(crate) fn create(path: &Path, secret: &[u8]) -> Result<()> {
    let folder = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // `tempfile` makes its files with mode 0600.
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    file.write_all(secret)?;
    file.as_file().sync_all()?;
    file.persist_noclobber(path).map_err(|error| error.error)?;
    // The entry must survive a power cut as well, or everything sealed under the key is lost.
    File::open(folder)?.sync_all()
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
