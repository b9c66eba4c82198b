//! A plan as plain data, for people and tools: which kernel runs a shape on a device, in which
//! passes, and what that moves.

use std::fmt;
use std::ops::Range;

use super::{Access, Entry, Kind, Plan, WORKGROUP};
use crate::{DType, Shape};

/// The largest number of passes over rows; `Device::plan` refuses more.
pub(crate) const MOST_PASSES: u64 = 4096;
/// Passes that the table shows at each end, where there are many.
const SHOWN_PASSES: usize = 8;

/// The kernel that runs an operation over a shape on a device, as
/// [`Device::plan`](crate::Device::plan) returns it. `Display` prints it as a table of several
/// lines.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ExecutionPlan {
    /// The operation, by its name in `logits bench --ops`.
    pub operation: &'static str,
    /// The shape of the logits.
    pub shape: Shape,
    /// The type of the logits.
    pub dtype: DType,
    /// The adapter's name, or `CPU`.
    pub device: String,
    /// The backend, `cpu` for the CPU.
    pub backend: &'static str,
    /// How rows are spread over threads. On a GPU `register-resident` (a row is held in registers
    /// and read once), `online` (a row is reduced while it is read, and read again where elements
    /// are written) or `split row` (several workgroups share a row). On the CPU `rows as one
    /// stream` (short rows lie one after the other, and a vector may hold classes of several of
    /// them), `one long row` (a vector holds sixteen classes of one row) or `row to itself` (rows
    /// are copied one at a time, and classes are selected from the copy).
    pub strategy: &'static str,
    /// How threads get at the rows. On a GPU `direct`, `staged through workgroup memory` or `lanes
    /// across rows` (neighbouring threads take neighbouring rows). On the CPU `direct` (rows are
    /// read where they are), `gathered rows` (strided rows are copied together), `copied rows`
    /// (short rows of half types are converted together) or `copied row`.
    pub access: &'static str,
    /// On a GPU the threads that share a row, or a segment of a split row. On the CPU the lanes of
    /// a vector.
    pub lanes: u32,
    /// Units of 16 bytes that a thread of a GPU holds, or has on their way, at a time; `None` on
    /// the CPU.
    pub units: Option<u32>,
    /// The rows (for a split row the segments) that a workgroup of a GPU takes, or the rows of a
    /// group that a thread of the CPU computes together. A batch may have fewer.
    pub rows_at_once: u32,
    /// Parts that a row is cut into: segments of a split row, or pieces of a row whose logits stay
    /// in a cache of the CPU between two loops. 1 where rows are not cut.
    pub pieces: u64,
    /// The instruction set of the CPU's loops, as [`simd_level`](crate::simd_level) names it;
    /// `None` on a GPU.
    pub simd: Option<&'static str>,
    /// On a GPU the parts in which a call over host memory is uploaded, computed and read back,
    /// where results go to other memory. On the CPU the tasks that the batch is split into.
    pub parts: u64,
    /// The dispatches of a GPU in order, or the loops in which the CPU goes through a group of
    /// rows. Empty where there is nothing to do.
    pub passes: Vec<PlannedPass>,
    /// Bytes that must be moved: inputs once in, results once out.
    pub bytes_needed: u64,
    /// Bytes between memory and the kernels. On a GPU a second reading counts, although it may come
    /// from a cache. On the CPU a second reading from a core's caches does not count, and neither
    /// do the lines that a write through the caches reads first. `None` where copies of rows are
    /// larger than those caches.
    pub bytes_moved: Option<u64>,
    /// Bytes of logits that the CPU reads again from a core's caches; `None` on a GPU, and where
    /// [`bytes_moved`](Self::bytes_moved) is.
    pub bytes_reread: Option<u64>,
}

/// One pass of an [`ExecutionPlan`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PlannedPass {
    /// The entry point of the shader, or what the loop does.
    pub name: &'static str,
    /// The source file that has it, from the root of the repository.
    pub file: &'static str,
    /// The rows that it is about.
    pub rows: Range<u64>,
    /// The classes of those that it reads or writes; empty where it reads results of rows alone.
    pub classes: Range<u64>,
    /// Threads of the dispatch, those without work included, or threads of the CPU at most.
    pub threads: u64,
    /// The work of the pass.
    pub work: PassWork,
}

/// The work of a [`PlannedPass`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PassWork {
    /// A dispatch on a GPU.
    Dispatch {
        /// Its workgroups in each dimension.
        workgroups: [u32; 3],
    },
    /// A loop over the classes of a group of rows, on the CPU.
    Loop {
        /// The arrays that it reads.
        reads: Vec<&'static str>,
        /// The arrays that it writes.
        writes: Vec<&'static str>,
    },
}

/// The subject of a plan.
pub(crate) struct About {
    pub(crate) operation: &'static str,
    pub(crate) shape: Shape,
    pub(crate) dtype: DType,
    pub(crate) device: String,
    pub(crate) backend: &'static str,
}

impl ExecutionPlan {
    /// Describes a plan of a GPU; `parts` are those of a call over host memory.
    pub(crate) fn of_gpu(about: About, plan: &Plan, parts: u64) -> Self {
        let About { operation, shape, dtype, device, backend } = about;
        let passes = plan.passes().into_iter().map(|pass| PlannedPass {
            name: pass.entry.name(),
            file: pass.entry.file(),
            threads: pass.groups.iter().map(|&groups| u64::from(groups)).product::<u64>()
                * u64::from(WORKGROUP),
            work: PassWork::Dispatch { workgroups: pass.groups },
            // Totals are about all rows.
            rows: match pass.entry {
                Entry::TotalTargets | Entry::TotalLosses => 0..plan.problem.rows,
                _ => pass.rows,
            },
            classes: pass.classes,
        });
        let traffic = plan.traffic(false);
        let strategy = plan.strategy;
        Self {
            operation,
            shape,
            dtype,
            device,
            backend,
            strategy: match strategy.kind {
                Kind::RegisterResident => "register-resident",
                Kind::Online => "online",
                Kind::SplitRow => "split row",
            },
            access: match plan.access() {
                Access::Direct => "direct",
                Access::Staged { .. } => "staged through workgroup memory",
                Access::LanesAcrossRows => "lanes across rows",
            },
            lanes: strategy.lanes,
            units: Some(strategy.units),
            rows_at_once: WORKGROUP / strategy.lanes,
            pieces: plan.segments().into(),
            simd: None,
            parts,
            passes: passes.collect(),
            bytes_needed: traffic.needed,
            bytes_moved: Some(traffic.moved),
            bytes_reread: None,
        }
    }

    /// Explains the strategy in a line.
    fn strategy_meaning(&self) -> &'static str {
        match self.strategy {
            "register-resident" => "a row is held in registers, and read once",
            "online" => {
                "a row is reduced while it is read, and read again where elements are written"
            }
            "split row" => "several workgroups share a row, a segment each",
            "rows as one stream" => "a vector may hold classes of several short rows",
            "one long row" => "a vector holds sixteen classes of one row",
            "row to itself" => {
                "rows are copied one at a time, and classes are selected from the copy"
            }
            _ => "",
        }
    }

    fn access_meaning(&self) -> &'static str {
        match self.access {
            "direct" => "rows are read where they are",
            "staged through workgroup memory" => {
                "the rows of a workgroup come and go in one unbroken stream"
            }
            "lanes across rows" => "rows are strided, and neighbouring threads take neighbours",
            "gathered rows" => "rows are strided, and copied together before they are computed",
            "copied rows" => {
                "short rows are converted together to the type that they are computed in"
            }
            "copied row" => "a row is converted to the type that it is computed in",
            _ => "",
        }
    }

    /// Formats how a row lies in the lanes of a GPU, each of which has up to `units` units of it.
    fn fmt_gpu_lanes(&self, f: &mut fmt::Formatter<'_>, units: u32) -> fmt::Result {
        let Self { lanes, rows_at_once, pieces, dtype, .. } = self;
        let is_split = self.strategy == "split row";
        let (of, what) = if is_split { ("segment", "segments") } else { ("row", "rows") };
        let values = u64::from(units) * super::UNIT_BYTES / dtype.size() as u64;
        writeln!(
            f,
            "{:<14}{} a {of}, each with up to {} of 16 bytes at a time ({})",
            "lanes",
            counted(u64::from(*lanes), "thread", "threads"),
            counted(u64::from(units), "unit", "units"),
            counted(values, "value", "values"),
        )?;
        writeln!(f, "{:<14}{WORKGROUP} threads, {rows_at_once} {what}", "workgroup")?;
        if is_split {
            writeln!(f, "{:<14}{pieces} a row", "segments")?;
        }
        Ok(())
    }

    /// Formats how rows lie in the lanes of the CPU's vectors, and over its threads.
    fn fmt_cpu_lanes(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { lanes, rows_at_once, pieces, .. } = self;
        let simd = self.simd.unwrap_or("portable");
        writeln!(f, "{:<14}{lanes} a vector, {simd}", "lanes")?;
        writeln!(
            f,
            "{:<14}{} at a time",
            "group",
            counted(u64::from(*rows_at_once), "row", "rows")
        )?;
        if *pieces > 1 {
            writeln!(f, "{:<14}{pieces} a row", "pieces")?;
        }
        let threads = self.passes.iter().map(|pass| pass.threads).max().unwrap_or(1);
        writeln!(
            f,
            "{:<14}{threads}, for {}{}",
            "threads",
            counted(self.parts, "task", "tasks"),
            if threads > self.parts { "; they share each row" } else { "" }
        )?;
        Ok(())
    }
}

/// Bytes, with a round number where that says more.
fn bytes(count: u64) -> String {
    let mega = count as f64 / 1e6;
    match count {
        0..10_000 => format!("{count}"),
        10_000..1_000_000 => format!("{count} ({:.1} kB)", mega * 1e3),
        1_000_000..1_000_000_000 => format!("{count} ({mega:.1} MB)"),
        _ => format!("{count} ({:.1} GB)", mega / 1e3),
    }
}

fn counted(count: u64, one: &str, many: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { many })
}

impl fmt::Display for ExecutionPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { operation, shape, dtype, device, backend, .. } = self;
        let (rows, classes) = (shape.row_count(), shape.classes());
        write!(f, "{operation} of {rows}x{classes} {dtype}")?;
        if shape.inner() > 1 {
            write!(f, ", in blocks of {} rows side by side", shape.inner())?;
        }
        writeln!(f, "\n{:<14}{device} ({backend})", "device")?;
        writeln!(f, "{:<14}{}: {}", "strategy", self.strategy, self.strategy_meaning())?;
        writeln!(f, "{:<14}{}: {}", "access", self.access, self.access_meaning())?;
        match self.units {
            Some(units) => self.fmt_gpu_lanes(f, units)?,
            None => self.fmt_cpu_lanes(f)?,
        }
        let count = self.passes.len();
        writeln!(
            f,
            "{:<14}{}",
            "passes",
            match (count, self.units) {
                (0, _) => "none: there is nothing to do".to_owned(),
                (_, Some(_)) => format!(
                    "{} over data on the device",
                    counted(count as u64, "dispatch", "dispatches")
                ),
                (_, None) =>
                    format!("{} over each group of rows", counted(count as u64, "loop", "loops")),
            }
        )?;
        let shown = if count > 3 * SHOWN_PASSES { SHOWN_PASSES } else { count };
        for (nth, pass) in self.passes.iter().enumerate() {
            if nth == shown && count > 2 * shown {
                writeln!(f, "    ... {} more, as --json lists them", count - 2 * shown)?;
            }
            if nth < shown || nth >= count - shown {
                writeln!(f, "{:>4}  {pass}", nth + 1)?;
            }
        }
        if self.units.is_some() {
            let parts = counted(self.parts, "part", "parts");
            write!(f, "{:<14}a call over host memory goes through the device in {parts}", "host")?;
            let totals = Entry::TotalTargets.file();
            if self.passes.iter().any(|pass| pass.file == totals) {
                write!(f, ", and the CPU does what {totals} does")?;
            }
            writeln!(f)?;
        }
        write!(f, "{:<14}{}", "bytes needed", bytes(self.bytes_needed))?;
        if let Some(moved) = self.bytes_moved {
            write!(f, "\n{:<14}{}", "bytes moved", bytes(moved))?;
            if self.bytes_needed > 0 {
                write!(f, ", {:.3} of those needed", moved as f64 / self.bytes_needed as f64)?;
            }
        }
        if let Some(reread) = self.bytes_reread.filter(|&reread| reread > 0) {
            write!(f, "\n{:<14}{}, from a core's caches", "bytes reread", bytes(reread))?;
        }
        Ok(())
    }
}

impl fmt::Display for PlannedPass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, file, rows, classes, threads, work } = self;
        write!(f, "{name:<22} {file:<41} ")?;
        match work {
            PassWork::Dispatch { workgroups: [x, y, z] } => {
                write!(f, "{x}x{y}x{z} workgroups, {threads} threads, ")?;
                write!(f, "rows {}..{}", rows.start, rows.end)?;
                if !classes.is_empty() {
                    write!(f, ", classes {}..{}", classes.start, classes.end)?;
                }
            }
            PassWork::Loop { reads, writes } => {
                write!(f, "reads {}", reads.join(" and "))?;
                if !writes.is_empty() {
                    write!(f, ", writes {}", writes.join(" and "))?;
                }
            }
        }
        Ok(())
    }
}
