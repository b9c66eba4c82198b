//! Calls of the binary, and their input files.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tempfile::TempDir;

pub(super) fn logits() -> Command {
    Command::new(env!("CARGO_BIN_EXE_logits"))
}

pub(super) fn run(arguments: &[&str]) -> Output {
    logits().args(arguments).output().unwrap()
}

/// Checks for exit code 2, nothing on stdout, and one line of at most 300 bytes on stderr, which it
/// returns.
#[track_caller]
pub(super) fn line_of(output: &Output) -> String {
    let stderr = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!((output.status.code(), stderr.lines().count()), (Some(2), 1), "{stderr}");
    assert!(stderr.len() <= 300, "{} bytes: {stderr}", stderr.len());
    assert!(stderr.starts_with("logits: ") && stderr.ends_with('\n'), "{stderr:?}");
    assert!(output.stdout.is_empty(), "{output:?}");
    stderr
}

/// Checks for an error in one line that contains all of `words`.
#[track_caller]
pub(super) fn refused(arguments: &[&str], words: &[&str]) {
    let line = line_of(&run(arguments));
    for word in words {
        assert!(line.contains(word), "no {word:?} in {line:?}");
    }
}

/// A type of numbers, by numpy's code.
pub(super) trait Number: bytemuck::Pod {
    const CODE: &'static str;
}

macro_rules! numbers {
    ($($number:ty: $code:literal),*) => {
        $(impl Number for $number {
            const CODE: &'static str = $code;
        })*
    };
}

numbers!(f32: "f4", f64: "f8", u8: "u1", i32: "i4", i64: "i8");

/// Returns an array of numbers in C order as a file.
pub(super) fn npy<T: Number>(shape: &[u64], values: &[T]) -> Vec<u8> {
    [&header_of::<T>(shape, false), bytemuck::cast_slice(values)].concat()
}

/// Returns the header of an array whose numbers are in this machine's byte order.
pub(super) fn header_of<T: Number>(shape: &[u64], is_fortran: bool) -> Vec<u8> {
    let sizes: String = shape.iter().map(|size| format!("{size}, ")).collect();
    let end = if cfg!(target_endian = "little") { '<' } else { '>' };
    let (code, order) = (T::CODE, if is_fortran { "True" } else { "False" });
    npy_header(&format!(
        "{{'descr': '{end}{code}', 'fortran_order': {order}, 'shape': ({sizes}), }}"
    ))
}

pub(super) fn write<T: Number>(path: &Path, shape: &[u64], values: &[T]) {
    fs::write(path, npy(shape, values)).unwrap();
}

/// Returns the magic string, version 1.0, the length of `text`, and `text`.
pub(super) fn npy_header(text: &str) -> Vec<u8> {
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((text.len() as u16).to_le_bytes());
    bytes.extend(text.as_bytes());
    bytes
}

/// Reads the shape and the numbers of an array of f32 that the binary has written.
pub(super) fn read(path: &Path) -> (Vec<u64>, Vec<f32>) {
    let bytes = fs::read(path).unwrap();
    assert!(bytes.starts_with(b"\x93NUMPY\x01\x00"));
    let start = 10 + usize::from(u16::from_le_bytes([bytes[8], bytes[9]]));
    let text = str::from_utf8(&bytes[10..start]).unwrap();
    let shape = text.strip_prefix("{'descr': '<f4', 'fortran_order': False, 'shape': (").unwrap();
    let shape = shape.trim_end().strip_suffix("), }").unwrap();
    let shape: Vec<u64> = shape
        .split(',')
        .map(str::trim)
        .filter(|size| !size.is_empty())
        .map(|size| size.parse().unwrap())
        .collect();
    let values: Vec<f32> =
        bytes[start..].chunks(4).map(|four| f32::from_le_bytes(four.try_into().unwrap())).collect();
    assert_eq!(values.len() as u64, shape.iter().product::<u64>());
    (shape, values)
}

/// A folder with logits [5, 4] and targets.
pub(super) struct Files {
    pub(super) folder: TempDir,
    pub(super) logits: Vec<f32>,
    pub(super) targets: Vec<i64>,
}

impl Files {
    pub(super) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let logits: Vec<f32> = (0..20).map(|x| (x * 7 % 11) as f32 * 0.5 - 2.0).collect();
        let targets = vec![0, 3, -100, 1, 2];
        write(&folder.path().join("x.npy"), &[5, 4], &logits);
        write(&folder.path().join("y.npy"), &[5], &targets);
        Self { folder, logits, targets }
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(super) fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    /// Writes an array of f32 zeros, whose data takes no room on the disk.
    pub(super) fn zeros(&self, name: &str, shape: &[u64]) {
        let header = npy::<f32>(shape, &[]);
        fs::write(self.path(name), &header).unwrap();
        let file = fs::File::options().write(true).open(self.path(name)).unwrap();
        file.set_len(header.len() as u64 + 4 * shape.iter().product::<u64>()).unwrap();
    }

    /// The names in the folder.
    pub(super) fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.folder.path()).unwrap();
        let mut names: Vec<_> = entries
            .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }

    /// Returns a call of `logits loss` on x.npy and y.npy in this folder, with `arguments` added.
    pub(super) fn loss(&self, arguments: &[&str]) -> Command {
        let mut command = logits();
        command.current_dir(self.folder.path());
        command.args([
            "loss",
            "--device",
            "cpu",
            "--json",
            "--logits",
            "x.npy",
            "--targets",
            "y.npy",
        ]);
        command.args(arguments);
        command
    }
}
