//! Output files. A path that cannot be written is refused before any work. Each file is written
//! under a temporary name in its folder; `commit` renames all of them, or none.

mod destination;
mod signals;

use std::fs;
use std::io::{self, ErrorKind, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use tempfile::{NamedTempFile, TempPath};

use crate::CliError;
use destination::{Destination, FileId, Identity, folder_of, standard_streams};
pub(crate) use signals::survive_size_limit;
use signals::{clean_up_after_signals, temporaries};

/// How temporary names start.
const PREFIX: &str = ".logits-";

/// An unfinished output file. It is removed when it is dropped.
pub(crate) struct Output {
    /// The path as the user wrote it, for errors.
    given: PathBuf,
    destination: PathBuf,
    temporary: NamedTempFile,
}

impl Output {
    pub(crate) fn error(&self, error: impl ToString) -> CliError {
        CliError::file(&self.given, error)
    }

    /// Appends a text.
    pub(crate) fn write_text(&mut self, text: &str) -> Result<(), CliError> {
        self.write_all(text.as_bytes()).map_err(|error| self.error(error))
    }

    fn create(given: &Path, destination: PathBuf) -> Result<Self, CliError> {
        let failed = |error: io::Error| CliError::file(given, error);
        let former = destination.metadata().ok();
        let mut builder = tempfile::Builder::new();
        builder.prefix(PREFIX);
        // A new file has the mode that the umask gives. A file that replaces a former one is
        // private until it has the former one's mode.
        #[cfg(unix)]
        if former.is_none() {
            builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
        }
        let temporary = {
            let mut temporaries = temporaries();
            let temporary = builder.tempfile_in(folder_of(&destination)).map_err(failed)?;
            temporaries.push(temporary.path().to_owned());
            temporary
        };
        if let Some(former) = former {
            #[cfg(unix)]
            {
                use std::os::unix::fs::MetadataExt;
                // Only root may give a file away.
                let _ = std::os::unix::fs::fchown(
                    temporary.as_file(),
                    Some(former.uid()),
                    Some(former.gid()),
                );
            }
            temporary.as_file().set_permissions(former.permissions()).map_err(failed)?;
        }
        Ok(Self { given: given.to_owned(), destination, temporary })
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

/// Creates a temporary file for each path that is given. Returns an error where two paths, or a
/// path and an input, are the same file.
pub(crate) fn create<const N: usize>(
    paths: [Option<&Path>; N],
    inputs: &[&Path],
) -> Result<[Option<Output>; N], CliError> {
    let streams = standard_streams().map(|(id, name)| (Identity::Existing(id), name.to_owned()));
    let inputs = inputs.iter().filter_map(|path| {
        let id = FileId::of(path).ok()?;
        Some((Identity::Existing(id), format!("the input {}", path.display())))
    });
    let mut taken: Vec<(Identity, String)> = streams.chain(inputs).collect();
    let mut destinations = Vec::new();
    for path in paths {
        let Some(path) = path else {
            destinations.push(None);
            continue;
        };
        let Destination { path: destination, identity } = Destination::find(path)?;
        if let Some((_, name)) = taken.iter().find(|(other, _)| *other == identity) {
            return Err(CliError::file(path, format!("is the same file as {name}")));
        }
        taken.push((identity, format!("the output {}", path.display())));
        destinations.push(Some((path, destination)));
    }
    if destinations.iter().any(Option::is_some) {
        clean_up_after_signals();
    }
    let mut outputs = [const { None }; N];
    for (output, found) in outputs.iter_mut().zip(destinations) {
        *output =
            found.map(|(given, destination)| Output::create(given, destination)).transpose()?;
    }
    Ok(outputs)
}

/// Renames all outputs to their destinations. After an error the files that were there before are
/// there again.
pub(crate) fn commit(outputs: impl IntoIterator<Item = Output>) -> Result<(), CliError> {
    let outputs: Vec<Output> = outputs.into_iter().collect();
    let mut temporaries = temporaries();
    let is_only = outputs.len() == 1;
    let mut renamed: Vec<(PathBuf, Option<TempPath>)> = Vec::new();
    for Output { given, destination, temporary } in outputs {
        let keeps_former =
            !is_only && destination.symlink_metadata().is_ok_and(|found| found.is_file());
        match replace(&destination, temporary, keeps_former) {
            Ok(former) => renamed.push((destination, former)),
            Err(error) => {
                let mut kept = String::new();
                for (path, former) in renamed.into_iter().rev() {
                    match former {
                        Some(former) => kept += &put_back(former, &path),
                        None => drop(fs::remove_file(path)),
                    }
                }
                return Err(CliError::file(&given, format!("{error}{kept}")));
            }
        }
    }
    temporaries.clear();
    Ok(())
}

/// Whether there are outputs that have been created and not committed.
pub(crate) fn are_unfinished() -> bool {
    !temporaries().is_empty()
}

/// Gives `temporary` the name `path`. Returns the file that had this name before, where
/// `keeps_former`. After an error `path` is as it was.
fn replace(
    path: &Path,
    temporary: NamedTempFile,
    keeps_former: bool,
) -> io::Result<Option<TempPath>> {
    let former = keeps_former.then(|| back_up(path)).transpose()?;
    match temporary.persist(path) {
        Ok(_) => Ok(former),
        Err(failed) => {
            let kept = former.map(|former| put_back(former, path)).unwrap_or_default();
            Err(if kept.is_empty() {
                failed.error
            } else {
                io::Error::other(format!("{}{kept}", failed.error))
            })
        }
    }
}

/// Gives a file that was backed up its name again. Where that fails, the backup stays, and the text
/// returned says where it is.
fn put_back(former: TempPath, path: &Path) -> String {
    if fs::rename(&former, path).is_ok() {
        return String::new();
    }
    let text = format!("; {} is now {}", path.display(), former.display());
    let _ = former.keep();
    text
}

/// Gives `file` a second, temporary name. Where the file system has no hard links, the file is
/// moved to it.
fn back_up(file: &Path) -> io::Result<TempPath> {
    let make = |name: &Path| {
        fs::hard_link(file, name).or_else(|error| match error.kind() {
            ErrorKind::AlreadyExists => Err(error),
            _ => fs::rename(file, name),
        })
    };
    Ok(tempfile::Builder::new().prefix(PREFIX).make_in(folder_of(file), make)?.into_temp_path())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::{commit, create};

    /// The second of three files cannot have its name, because a folder has taken it meanwhile.
    #[test]
    fn files_appear_together_or_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let names = || {
            let mut names: Vec<_> =
                fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
            names.sort();
            names
        };
        fs::write(path("former"), "former").unwrap();
        let paths = [path("new"), path("former"), path("taken"), path("last")];
        let written = || {
            let mut outputs = create(paths.each_ref().map(|path| Some(path.as_path())), &[])
                .unwrap()
                .map(Option::unwrap);
            outputs.iter_mut().for_each(|output| output.write_text("written").unwrap());
            outputs
        };
        let outputs = written();
        fs::create_dir_all(path("taken").join("inner")).unwrap();
        assert!(commit(outputs).unwrap_err().to_string().contains("taken"));
        assert_eq!(names(), ["former", "taken"]);
        assert_eq!(fs::read_to_string(path("former")).unwrap(), "former");

        let [only] = create([Some(&*paths[1])], &[]).unwrap();
        let only = only.unwrap();
        fs::remove_file(only.temporary.path()).unwrap();
        assert!(commit([only]).is_err());
        assert_eq!(fs::read_to_string(path("former")).unwrap(), "former");

        fs::remove_dir_all(path("taken")).unwrap();
        drop(written());
        assert_eq!(names(), ["former"]);
        commit(written()).unwrap();
        assert_eq!(names(), ["former", "last", "new", "taken"]);
        assert!(paths.iter().all(|path| fs::read_to_string(path).unwrap() == "written"));
    }
}
