//! Files that are whole or absent after a crash or a power cut, and are removed when they are dropped unfinished.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How a file under way is called, after its random name.
const EXTENSION: &str = "part";
/// A file under way that was not written to for so long has lost its writer.
const STALE: Duration = Duration::from_secs(3600);

/// A file under way. It is removed when it is dropped before [`TempFile::keep`].
#[derive(Debug)]
pub(super) struct TempFile {
    path: PathBuf,
    kept: bool,
}

impl TempFile {
    /// A new name in a folder.
    pub(super) fn in_folder(folder: &Path) -> Self {
        Self { path: folder.join(format!("{}.{EXTENSION}", uuid::Uuid::new_v4())), kept: false }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The file was renamed: there is nothing to remove.
    pub(super) fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for TempFile {
    fn drop(&mut self) {
        if !self.kept {
            // It may never have been made, and what stays is removed by `remove_stale`.
            std::fs::remove_file(&self.path).unwrap_or_default();
        }
    }
}

/// Removes what a killed process left in a folder. Younger files may be another process's.
pub(super) fn remove_stale(folder: &Path) -> std::io::Result<()> {
    let entries = match std::fs::read_dir(folder) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let path = entry?.path();
        let age = std::fs::metadata(&path).and_then(|m| m.modified()).ok().and_then(|at| at.elapsed().ok());
        if path.extension().is_some_and(|e| e == EXTENSION) && age.is_some_and(|age| age > STALE) {
            std::fs::remove_file(&path)?;
        }
    }
    Ok(())
}

/// Fsyncs a folder and those above it up to `root`: a new folder is an entry of the one above, and is lost in a
/// power cut while that one is not synced, with all that is in it.
pub(super) fn sync_folders(root: &Path, leaf: &Path) -> std::io::Result<()> {
    for folder in leaf.ancestors() {
        File::open(folder)?.sync_all()?;
        if folder == root {
            break;
        }
    }
    Ok(())
}

/// Replaces a small file at once, durably. `temps` is a folder on the same disk.
pub(super) fn replace(root: &Path, temps: &Path, path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let folder = path.parent().unwrap_or(root);
    std::fs::create_dir_all(folder)?;
    let temp = TempFile::in_folder(temps);
    let mut file = File::create(temp.path())?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(temp.path(), path)?;
    temp.keep();
    sync_folders(root, folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_given_up_is_removed_and_one_that_is_kept_stays() {
        let dir = tempfile::tempdir().expect("dir");
        let (gone, kept) = (TempFile::in_folder(dir.path()), TempFile::in_folder(dir.path()));
        let paths = [gone.path().to_owned(), kept.path().to_owned()];
        paths.iter().for_each(|path| std::fs::write(path, "x").expect("write"));
        drop(gone);
        kept.keep();
        assert_eq!(paths.map(|path| path.exists()), [false, true]);
    }

    #[test]
    fn only_what_has_lost_its_writer_is_removed() {
        let dir = tempfile::tempdir().expect("dir");
        let (old, young, other) = (dir.path().join("a.part"), dir.path().join("b.part"), dir.path().join("c"));
        for (path, age) in [(&old, 7200), (&young, 60), (&other, 7200)] {
            let file = File::create(path).expect("create");
            let at = file.metadata().and_then(|m| m.modified()).expect("time") - Duration::from_secs(age);
            file.set_modified(at).expect("set");
        }
        remove_stale(dir.path()).expect("remove");
        assert_eq!([old, young, other].map(|path| path.exists()), [false, true, true]);
        remove_stale(&dir.path().join("none")).expect("no folder, nothing to do");
    }
}
