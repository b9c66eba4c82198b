//! Files that appear under their names only when they are whole, and whose place is found wanting before any work is done.

use std::io::Write;
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

use crate::CliError;

/// Where a file is to be, and a place beside it to write it to.
pub(crate) fn begin(path: &Path) -> Result<(PathBuf, NamedTempFile), CliError> {
    let bad = |error: &dyn std::fmt::Display| CliError::file(path, error);
    // Renaming over a device or a pipe would replace it.
    let path = match path.metadata() {
        Ok(existing) if !existing.is_file() => return Err(bad(&"exists and is not a regular file")),
        Ok(_) => path.canonicalize().map_err(|error| bad(&error))?,
        Err(_) => path.to_owned(),
    };
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut builder = tempfile::Builder::new();
    builder.prefix(".logits-");
    #[cfg(unix)]
    let permissions = std::os::unix::fs::PermissionsExt::from_mode(0o666);
    #[cfg(unix)]
    builder.permissions(permissions);
    let file = builder.tempfile_in(folder).map_err(|error| CliError::file(&path, error))?;
    Ok((path, file))
}

/// Gives a file its name.
pub(crate) fn finish(path: &Path, file: NamedTempFile) -> Result<(), CliError> {
    file.persist(path).map(drop).map_err(|error| CliError::file(path, error.error))
}

/// A text, and its name.
pub(crate) fn finish_with(path: &Path, mut file: NamedTempFile, text: &str) -> Result<(), CliError> {
    file.write_all(text.as_bytes()).map_err(|error| CliError::file(path, error))?;
    finish(path, file)
}
