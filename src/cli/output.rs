//! Files that are written. Each is refused before any work where it cannot be made, is written beside its place under a name of its own, and
//! all of a call appear together at its end or not at all.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tempfile::{NamedTempFile, TempPath};

use crate::CliError;

/// A file on its way, which is removed where it is dropped.
pub(crate) struct Output {
    /// As the user wrote it, for errors.
    given: PathBuf,
    target: PathBuf,
    temporary: NamedTempFile,
}

impl Output {
    pub(crate) fn error(&self, error: impl ToString) -> CliError {
        CliError::file(&self.given, error)
    }

    /// Appends a text.
    pub(crate) fn write_text(&mut self, text: &str) -> Result<(), CliError> {
        self.temporary.write_all(text.as_bytes()).map_err(|error| self.error(error))
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.temporary.as_file_mut().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Seek for Output {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.temporary.as_file_mut().seek(to)
    }
}

/// Temporary files that a signal removes. Whoever holds the lock is making one, or giving them their names.
static TEMPORARIES: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

fn temporaries() -> MutexGuard<'static, Vec<PathBuf>> {
    TEMPORARIES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Makes outputs of these paths. No two may be the same file, nor one of the inputs.
pub(crate) fn create(paths: &[&Path], inputs: &[&Path]) -> Result<Vec<Output>, CliError> {
    let mut targets: VecDeque<Target> = VecDeque::new();
    let mut taken: Vec<(Place, String)> =
        standard_streams().map(|id| (Place::File(id), "standard output".to_owned())).collect();
    let input = |path: &&Path| Some((Place::File(Id::of(path).ok()?), format!("the input {}", path.display())));
    taken.extend(inputs.iter().filter_map(input));
    for path in paths {
        let target = Target::find(path)?;
        if let Some((_, what)) = taken.iter().find(|(place, _)| *place == target.place) {
            return Err(CliError::file(path, format!("is the same file as {what}")));
        }
        taken.push((target.place.clone(), format!("the output {}", path.display())));
        targets.push_back(target);
    }
    if !targets.is_empty() {
        clean_up_after_signals();
    }
    targets.into_iter().map(Target::create).collect()
}

/// Gives all outputs their names. Where one cannot have its own, files that were there before are put back.
pub(crate) fn commit(outputs: Vec<Output>) -> Result<(), CliError> {
    let mut temporaries = temporaries();
    let is_only = outputs.len() == 1;
    let mut done: Vec<(PathBuf, Option<TempPath>)> = Vec::new();
    for Output { given, target, temporary } in outputs {
        let is_there = !is_only && target.symlink_metadata().is_ok_and(|found| found.is_file());
        let former = if is_there { set_aside(&target).map(Some) } else { Ok(None) };
        let result = former.and_then(|former| {
            done.push((target.clone(), former));
            temporary.persist(&target).map_err(|failed| failed.error)
        });
        if let Err(error) = result {
            for (target, former) in done.into_iter().rev() {
                let _ = match former {
                    Some(former) => fs::rename(&former, target),
                    None => fs::remove_file(target),
                };
            }
            return Err(CliError::file(&given, error));
        }
    }
    temporaries.clear();
    Ok(())
}

/// Gives a file a second name, until that is dropped; or moves it there, where a file has only one.
fn set_aside(file: &Path) -> io::Result<TempPath> {
    let make = |name: &Path| {
        fs::hard_link(file, name).or_else(|error| match error.kind() {
            ErrorKind::AlreadyExists => Err(error),
            _ => fs::rename(file, name),
        })
    };
    Ok(tempfile::Builder::new().prefix(PREFIX).make_in(folder_of(file), make)?.into_temp_path())
}

const PREFIX: &str = ".logits-";
/// Links from one to the next that are followed, as on Linux.
const MOST_LINKS: usize = 40;

/// The folder that a path is in.
fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// A file or a folder, by whatever name.
#[derive(Clone, PartialEq)]
struct Id(#[cfg(unix)] (u64, u64), #[cfg(not(unix))] PathBuf);

impl Id {
    fn of(path: &Path) -> io::Result<Self> {
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

/// The files that standard output and standard error go to.
fn standard_streams() -> impl Iterator<Item = Id> {
    #[cfg(unix)]
    {
        use std::os::fd::AsFd;
        let streams = [io::stdout().as_fd().try_clone_to_owned(), io::stderr().as_fd().try_clone_to_owned()];
        let found = streams.into_iter().flatten().filter_map(|stream| File::from(stream).metadata().ok());
        found.filter(fs::Metadata::is_file).map(|found| Id::of_metadata(&found))
    }
    #[cfg(not(unix))]
    std::iter::empty()
}

#[derive(Clone, PartialEq)]
enum Place {
    File(Id),
    /// A name in a folder that nothing has yet.
    New(Id, OsString),
}

/// What an output's path leads to.
struct Target {
    given: PathBuf,
    path: PathBuf,
    place: Place,
}

impl Target {
    /// Follows links, also to where there is nothing yet, and checks that a file may be written there.
    fn find(given: &Path) -> Result<Self, CliError> {
        let bad = |reason: &dyn std::fmt::Display| CliError::file(given, reason);
        // The last component of `a/`, `a/.` and `a/..` names a folder.
        let names_file = |path: &Path| {
            let is_last =
                |name: &std::ffi::OsStr| path.as_os_str().as_encoded_bytes().ends_with(name.as_encoded_bytes());
            path.file_name().is_some_and(is_last)
        };
        let existing = match given.metadata() {
            Ok(found) if !found.is_file() => return Err(bad(&"exists and is not a regular file")),
            found => found.ok(),
        };
        let mut path = given.to_owned();
        for _ in 0..=MOST_LINKS {
            if !names_file(&path) {
                return Err(bad(&"names a folder, not a file"));
            }
            let place = match path.symlink_metadata() {
                Ok(found) if found.is_symlink() => {
                    let to = path.read_link().map_err(|error| bad(&error))?;
                    path = folder_of(&path).join(to);
                    continue;
                }
                Ok(_) => {
                    // A file that may not be written may not be replaced either.
                    File::options().write(true).open(&path).map_err(|error| bad(&error))?;
                    Id::of(&path).map(Place::File)
                }
                // A link of the system may say where a file was.
                Err(error) if error.kind() == ErrorKind::NotFound && existing.is_none() => {
                    let folder = folder_of(&path);
                    let missing = |error: io::Error| bad(&format!("no folder {}: {error}", folder.display()));
                    if !folder.metadata().map_err(missing)?.is_dir() {
                        return Err(bad(&format!("{} is not a folder", folder.display())));
                    }
                    Id::of(folder).map(|id| Place::New(id, path.file_name().unwrap_or_default().to_owned()))
                }
                Err(error) => Err(error),
            };
            let place = place.map_err(|error| bad(&error))?;
            return Ok(Self { given: given.to_owned(), path, place });
        }
        Err(bad(&"too many links"))
    }

    fn create(self) -> Result<Output, CliError> {
        let Self { given, path, .. } = self;
        let failed = |error: io::Error| CliError::file(&given, error);
        let mut builder = tempfile::Builder::new();
        builder.prefix(PREFIX);
        #[cfg(unix)]
        let permissions = std::os::unix::fs::PermissionsExt::from_mode(0o666);
        #[cfg(unix)]
        builder.permissions(permissions);
        let temporary = {
            let mut temporaries = temporaries();
            let temporary = builder.tempfile_in(folder_of(&path)).map_err(failed)?;
            temporaries.push(temporary.path().to_owned());
            temporary
        };
        if let Ok(former) = path.metadata() {
            #[cfg(unix)]
            {
                use std::os::unix::fs::MetadataExt;
                // Only root may give a file away.
                let _ = std::os::unix::fs::fchown(temporary.as_file(), Some(former.uid()), Some(former.gid()));
            }
            temporary.as_file().set_permissions(former.permissions()).map_err(failed)?;
        }
        Ok(Output { given, target: path, temporary })
    }
}

/// Lets SIGHUP, SIGINT and SIGTERM remove the temporary files before they end the process. Must be called before other threads start, for
/// they inherit which signals they do not take.
#[cfg(unix)]
fn clean_up_after_signals() {
    use std::sync::Once;
    use std::thread;

    use nix::sys::signal::{SigSet, Signal, raise};

    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // A write beyond the limit of a file's size is an error then, and no signal.
        let _ = SigSet::from(Signal::SIGXFSZ).thread_block();
        let ending = [Signal::SIGHUP, Signal::SIGINT, Signal::SIGTERM].into_iter();
        let ending: SigSet = ending.filter(|&signal| !is_ignored(signal)).collect();
        // Whichever thread takes a signal that is not blocked ends the process at once, so all of them block it, and one waits for it.
        if ending.thread_block().is_err() {
            return;
        }
        let wait = move || {
            if let Ok(signal) = ending.wait() {
                let temporaries = temporaries();
                for file in temporaries.iter() {
                    let _ = fs::remove_file(file);
                }
                let _ = ending.thread_unblock();
                let _ = raise(signal);
            }
        };
        if thread::Builder::new().name("signals".to_owned()).stack_size(1 << 16).spawn(wait).is_err() {
            let _ = ending.thread_unblock();
        }
    });
}

/// Whether the caller has told this process to ignore a signal, as `nohup` does. Who blocks such a signal receives it nevertheless.
#[cfg(unix)]
fn is_ignored(signal: nix::sys::signal::Signal) -> bool {
    use nix::libc::{SIG_IGN, sigaction};

    let mut action = std::mem::MaybeUninit::<sigaction>::zeroed();
    // SAFETY: without a new action this is a question, and the answer is as large as the place for it.
    let is_known = unsafe { sigaction(signal as i32, std::ptr::null(), action.as_mut_ptr()) } == 0;
    // SAFETY: zeros are an action, and so is the answer.
    is_known && unsafe { action.assume_init() }.sa_sigaction == SIG_IGN
}

#[cfg(not(unix))]
fn clean_up_after_signals() {}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::{commit, create};

    /// The second of three files cannot have its name, for a folder has it meanwhile.
    #[test]
    fn files_appear_together_or_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let names = || {
            let mut names: Vec<_> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
            names.sort();
            names
        };
        fs::write(path("former"), "former").unwrap();
        let paths = [path("new"), path("former"), path("taken"), path("last")];
        let paths: Vec<&Path> = paths.iter().map(|path| path.as_path()).collect();
        let written = || {
            let mut outputs = create(&paths, &[]).unwrap();
            outputs.iter_mut().for_each(|output| output.write_text("written").unwrap());
            outputs
        };
        let outputs = written();
        fs::create_dir_all(path("taken").join("inner")).unwrap();
        assert!(commit(outputs).unwrap_err().to_string().contains("taken"));
        assert_eq!(names(), ["former", "taken"]);
        assert_eq!(fs::read_to_string(path("former")).unwrap(), "former");

        fs::remove_dir_all(path("taken")).unwrap();
        drop(written());
        assert_eq!(names(), ["former"]);
        commit(written()).unwrap();
        assert_eq!(names(), ["former", "last", "new", "taken"]);
        assert!(paths.iter().all(|path| fs::read_to_string(path).unwrap() == "written"));
    }
}
