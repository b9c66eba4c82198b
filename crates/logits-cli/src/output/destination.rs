//! Finds where an output file is to be: follows symbolic links, and refuses a path that cannot be
//! written.

use std::ffi::{OsStr, OsString};
use std::fmt::Display;
use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use crate::CliError;

/// Symbolic links followed before giving up, as on Linux.
const MAX_LINKS: usize = 40;

/// The folder that a path is in.
pub(super) fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// The identity of a file or folder, whatever path leads to it: device and inode; elsewhere the
/// canonical path.
#[derive(Clone, PartialEq)]
pub(super) struct FileId(#[cfg(unix)] (u64, u64), #[cfg(not(unix))] PathBuf);

impl FileId {
    pub(super) fn of(path: &Path) -> io::Result<Self> {
        #[cfg(unix)]
        return path.metadata().map(|found| Self::of_metadata(&found));
        #[cfg(not(unix))]
        path.canonicalize().map(Self)
    }

    #[cfg(unix)]
    fn of_metadata(found: &fs::Metadata) -> Self {
        use std::os::unix::fs::MetadataExt;
        Self((found.dev(), found.ino()))
    }
}

/// The regular files that standard output and standard error are redirected to, each with its name
/// for errors.
pub(super) fn standard_streams() -> impl Iterator<Item = (FileId, &'static str)> {
    #[cfg(unix)]
    {
        use std::os::fd::AsFd;
        let streams = [
            (io::stdout().as_fd().try_clone_to_owned(), "standard output"),
            (io::stderr().as_fd().try_clone_to_owned(), "standard error"),
        ];
        streams.into_iter().filter_map(|(stream, name)| {
            let found = File::from(stream.ok()?).metadata().ok().filter(fs::Metadata::is_file)?;
            Some((FileId::of_metadata(&found), name))
        })
    }
    #[cfg(not(unix))]
    std::iter::empty()
}

#[derive(Clone, PartialEq)]
pub(super) enum Identity {
    Existing(FileId),
    /// A folder and a name in it that does not exist yet, in lower case where systems mostly do not
    /// distinguish it.
    New(FileId, OsString),
}

impl Identity {
    fn new(folder: FileId, name: &OsStr) -> Self {
        let is_folded = cfg!(any(windows, target_vendor = "apple"));
        let name =
            if is_folded { name.to_string_lossy().to_lowercase().into() } else { name.to_owned() };
        Self::New(folder, name)
    }
}

/// The file that an output's path leads to.
pub(super) struct Destination {
    pub(super) path: PathBuf,
    pub(super) identity: Identity,
}

impl Destination {
    /// Follows symbolic links, dangling ones too, and checks that a file may be written there.
    /// `given` is the path as the user wrote it.
    pub(super) fn find(given: &Path) -> Result<Self, CliError> {
        let bad = |reason: &dyn Display| CliError::file(given, reason);
        // The last component of `a/`, `a/.` and `a/..` names a folder.
        let names_file = |path: &Path| {
            let is_last = |name: &OsStr| {
                path.as_os_str().as_encoded_bytes().ends_with(name.as_encoded_bytes())
            };
            path.file_name().is_some_and(is_last)
        };
        let existing = match given.metadata() {
            Ok(found) if !found.is_file() => return Err(bad(&"exists and is not a regular file")),
            found => found.ok(),
        };
        let mut path = given.to_owned();
        for _ in 0..=MAX_LINKS {
            if !names_file(&path) {
                return Err(bad(&"names a folder, not a file"));
            }
            let identity = match path.symlink_metadata() {
                Ok(found) if found.is_symlink() => {
                    let to = path.read_link().map_err(|error| bad(&error))?;
                    path = folder_of(&path).join(to);
                    continue;
                }
                Ok(found) => {
                    // A file that may not be written may not be replaced either.
                    File::options().write(true).open(&path).map_err(|error| bad(&error))?;
                    if !may_rename(&path, &found).map_err(|error| bad(&error))? {
                        return Err(bad(
                            &"is in a sticky folder and belongs to another user, so it cannot be replaced",
                        ));
                    }
                    FileId::of(&path).map(Identity::Existing)
                }
                // Only where `given` leads to no file: a link in /proc/self/fd names a path that
                // may be gone, though the file exists.
                Err(error) if error.kind() == ErrorKind::NotFound && existing.is_none() => {
                    let folder = folder_of(&path);
                    let missing =
                        |error: io::Error| bad(&format!("no folder {}: {error}", folder.display()));
                    if !folder.metadata().map_err(missing)?.is_dir() {
                        return Err(bad(&format!("{} is not a folder", folder.display())));
                    }
                    FileId::of(folder)
                        .map(|id| Identity::new(id, path.file_name().unwrap_or_default()))
                }
                Err(error) => Err(error),
            };
            return Ok(Self { identity: identity.map_err(|error| bad(&error))?, path });
        }
        Err(bad(&"too many symbolic links"))
    }
}

/// Returns whether this process may give another file the name of an existing one: in a sticky
/// folder only its owner, the folder's and root may.
fn may_rename(path: &Path, found: &fs::Metadata) -> io::Result<bool> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::{MetadataExt, PermissionsExt};

        const STICKY: u32 = 0o1000;
        let folder = folder_of(path).metadata()?;
        let user = nix::unistd::geteuid();
        let is_owner = [found.uid(), folder.uid()].contains(&user.as_raw());
        Ok(folder.permissions().mode() & STICKY == 0 || user.is_root() || is_owner)
    }
    #[cfg(not(unix))]
    {
        let _ = (path, found);
        Ok(true)
    }
}
