//! The numbers that shape kernels to an adapter, their defaults and their text form.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::str::FromStr;
use std::{fmt, fs};

use crate::Error;

/// The numbers that shape kernels to an adapter. The defaults follow from its limits and features,
/// and for some from its vendor; `logits tune` searches for better ones and writes them to a file,
/// for [`Device::with_tuning_file`](crate::Device::with_tuning_file).
///
/// The text form has a line `name = value` for each number; lines that start with `#` are comments.
///
/// The last bits of a row's results depend on these numbers, so a device has one set of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tuning {
    /// Threads that take neighbouring data, and are expected to exchange values without a barrier:
    /// a power of two from 1 to 256.
    pub subgroup: u32,
    /// The largest part of a row that a thread holds in its registers, in bytes as f32: a multiple
    /// of 32 from 32 to 512.
    pub lane_bytes: u32,
    /// The widest row that is held in registers, in classes: at most 65,536. `lane_bytes` may allow
    /// only narrower rows. `top_k`, `sample` and operations with much arithmetic a value hold rows
    /// of up to 2,048 classes, whatever these two numbers are.
    pub held_classes: u32,
    /// Threads that share a longer row, or a segment of one: a power of two from 4 to 256.
    pub long_lanes: u32,
    /// Loads of 16 bytes that a thread has in flight where a row of f32 is streamed: 1 to 16. It
    /// has half as many for 16-bit types.
    pub stream_units: u32,
    /// Whether neighbouring threads should read neighbouring addresses, as on every GPU; false for
    /// a CPU that acts as a GPU.
    pub coalesces: bool,
}

/// The vendor of an adapter, which some defaults depend on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Vendor {
    /// A CPU that acts as a GPU.
    Software,
    /// wgpu reports subgroups of 4 to 64 for all of Metal; Apple's GPUs have 32 threads
    /// (`threadExecutionWidth`).
    Apple,
    /// A thread of a Valhall GPU has 64 registers (Arm, "The Valhall shader core"), half of which
    /// hold 32 values.
    Arm,
    /// A hardware thread has 128 registers of 32 bytes, and runs 8, 16 or 32 threads in them as the
    /// compiler decides (Intel, "The SIMD machine"). With 16 threads, half of the registers hold 32
    /// values of each.
    Intel,
    /// A GPU of another vendor: all defaults follow from the limits.
    Other,
}

impl Tuning {
    /// Returns the defaults for an adapter; `subgroup` is the largest size of its subgroups, or 1
    /// where it has none.
    pub(crate) fn new(subgroup: u32, vendor: Vendor) -> Self {
        let is_software = vendor == Vendor::Software;
        let subgroup = match vendor {
            _ if subgroup <= 1 => 32,
            Vendor::Apple => 32,
            Vendor::Intel => 16,
            _ => subgroup.next_power_of_two().clamp(4, 64),
        };
        Self {
            subgroup,
            lane_bytes: match vendor {
                Vendor::Arm | Vendor::Intel => 128,
                // The registers of a subgroup hold about as much however many threads it has.
                _ => (4096 / subgroup).clamp(128, 512),
            },
            held_classes: 8192,
            // On a CPU barriers are expensive, so a long row is left to a subgroup.
            long_lanes: if is_software { subgroup } else { 256 },
            stream_units: 4,
            coalesces: !is_software,
        }
    }
}

/// Reads a tuning file. Returns an error for anything but a regular file of at most 64 KiB: a pipe
/// may never end.
pub(crate) fn read(path: &Path) -> io::Result<String> {
    const LONGEST: u64 = 1 << 16;
    let found = fs::metadata(path)?;
    if !found.is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    if found.len() > LONGEST {
        return Err(io::Error::other(format!(
            "{} bytes, where a tuning file has at most {LONGEST}",
            found.len()
        )));
    }
    let mut text = String::new();
    // No more than its length is read: a file of /proc has the length 0, and may have no end.
    File::open(path)?.take(found.len()).read_to_string(&mut text)?;
    Ok(text)
}

impl Tuning {
    /// # Errors
    /// [`Error::Tuning`] where a number is out of range.
    pub(crate) fn check(self) -> Result<Self, Error> {
        let power = |value: u32, least| value.is_power_of_two() && (least..=256).contains(&value);
        let checks = [
            ("subgroup", self.subgroup, "a power of two from 1 to 256", power(self.subgroup, 1)),
            (
                "lane_bytes",
                self.lane_bytes,
                "a multiple of 32 from 32 to 512",
                self.lane_bytes.is_multiple_of(32) && (32..=512).contains(&self.lane_bytes),
            ),
            ("held_classes", self.held_classes, "at most 65536", self.held_classes <= 65_536),
            (
                "long_lanes",
                self.long_lanes,
                "a power of two from 4 to 256",
                power(self.long_lanes, 4),
            ),
            ("stream_units", self.stream_units, "1 to 16", (1..=16).contains(&self.stream_units)),
        ];
        match checks.into_iter().find(|(.., holds)| !holds) {
            Some((name, value, wanted, _)) => Err(Error::Tuning {
                reason: format!("{name} = {value}, where it must be {wanted}"),
            }),
            None => Ok(self),
        }
    }
}

impl fmt::Display for Tuning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "subgroup = {}", self.subgroup)?;
        writeln!(f, "lane_bytes = {}", self.lane_bytes)?;
        writeln!(f, "held_classes = {}", self.held_classes)?;
        writeln!(f, "long_lanes = {}", self.long_lanes)?;
        writeln!(f, "stream_units = {}", self.stream_units)?;
        writeln!(f, "coalesces = {}", self.coalesces)
    }
}

impl FromStr for Tuning {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let wrong = |reason: String| Error::Tuning { reason };
        let mut values: BTreeMap<&str, &str> = BTreeMap::new();
        for line in
            text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'))
        {
            let (name, value) = line
                .split_once('=')
                .ok_or_else(|| wrong(format!("`{line}` is no `name = value`")))?;
            if values.insert(name.trim(), value.trim()).is_some() {
                return Err(wrong(format!("{} is there twice", name.trim())));
            }
        }
        let mut take =
            |name: &str| values.remove(name).ok_or_else(|| wrong(format!("{name} is missing")));
        let number = |name: &str, text: &str| {
            text.parse()
                .map_err(|_| wrong(format!("{name} = {text}, where it must be a whole number")))
        };
        let coalesces = take("coalesces")?;
        let tuning = Self {
            subgroup: number("subgroup", take("subgroup")?)?,
            lane_bytes: number("lane_bytes", take("lane_bytes")?)?,
            held_classes: number("held_classes", take("held_classes")?)?,
            long_lanes: number("long_lanes", take("long_lanes")?)?,
            stream_units: number("stream_units", take("stream_units")?)?,
            coalesces: coalesces.parse().map_err(|_| {
                wrong(format!("coalesces = {coalesces}, where it must be true or false"))
            })?,
        };
        match values.keys().next() {
            Some(name) => Err(wrong(format!("there is no `{name}`"))),
            None => tuning.check(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_says_it_all_and_nothing_else() {
        let of_others = [1, 32, 128].map(|subgroup| Tuning::new(subgroup, Vendor::Other));
        let of_vendors =
            [(8, Vendor::Software), (64, Vendor::Apple), (16, Vendor::Arm), (32, Vendor::Intel)];
        for tuning in
            of_vendors.map(|(most, vendor)| Tuning::new(most, vendor)).into_iter().chain(of_others)
        {
            assert_eq!(tuning.check().unwrap(), tuning);
            let text = format!("# of an adapter\n{tuning}");
            assert_eq!(text.parse::<Tuning>().unwrap(), tuning);
            for (wrong, reason) in [
                (text.replace("subgroup =", "subgroups ="), "subgroup is missing"),
                (format!("{text}\nspeed = 9"), "there is no `speed`"),
                (format!("{text}\nlong_lanes = 64"), "long_lanes is there twice"),
                (
                    text.replace("stream_units = 4", "stream_units = 40"),
                    "stream_units = 40, where it must be 1 to 16",
                ),
                (
                    text.replace("stream_units = 4", "stream_units"),
                    "`stream_units` is no `name = value`",
                ),
                (text.replace("stream_units = 4", "stream_units = x"), "must be a whole number"),
            ] {
                assert!(
                    wrong.parse::<Tuning>().unwrap_err().to_string().contains(reason),
                    "{reason}"
                );
            }
        }
    }
}
