//! Builds programs of kernels: clang compiles the sources and the runner `run.cpp`.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

const HEADER: &str = include_str!("metal_stdlib");
const RUNNER: &str = include_str!("run.cpp");

/// A file that clang compiles to a part of a program; the ending of its name is that of the
/// language.
pub struct Source {
    pub name: String,
    pub text: String,
}

/// The freedom that clang has with floating-point arithmetic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Operations in the written order, and subnormal numbers.
    Strict,
    /// Everything that Metal and drivers of DX12 may do, and no subnormal numbers.
    Hostile,
}

impl Mode {
    fn flags(self) -> Vec<&'static str> {
        let mut flags = vec!["-std=c++17", "-w", "-pthread"];
        match self {
            Self::Strict => flags.extend(["-O1", "-ffp-contract=off"]),
            Self::Hostile => flags.extend(["-O2", "-ffast-math"]),
        }
        #[cfg(target_arch = "x86_64")]
        {
            // `round` becomes an instruction instead of a call.
            if std::arch::is_x86_feature_detected!("sse4.1") {
                flags.push("-msse4.1");
            }
            if self == Self::Hostile {
                // Divisions use estimates, as WGSL allows.
                flags.push("-mrecip=all");
            }
            if self == Self::Hostile && std::arch::is_x86_feature_detected!("fma") {
                flags.push("-mfma");
            }
        }
        flags
    }
}

/// Whether a compiler can be used, or why not.
pub fn check_compiler(name: &str) -> Result<(), String> {
    if !cfg!(target_os = "linux") {
        return Err("threads of a workgroup are contexts of glibc".to_owned());
    }
    match Command::new(name).arg("--version").output() {
        Ok(out) if String::from_utf8_lossy(&out.stdout).contains("clang") => Ok(()),
        Ok(_) => Err(format!("{name} is not clang, whose vectors the kernels need")),
        Err(error) => Err(format!("there is no {name}: {error}")),
    }
}

/// A folder for programs, which is removed when the value is dropped.
pub struct Workshop {
    folder: PathBuf,
}

impl Workshop {
    pub fn new() -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let nth = COUNT.fetch_add(1, Ordering::Relaxed);
        let folder =
            std::env::temp_dir().join(format!("logits-kernels-{}-{nth}", std::process::id()));
        // Fails if the folder exists, so that another user's files are not compiled.
        std::fs::create_dir(&folder).unwrap();
        std::fs::write(folder.join("metal_stdlib"), HEADER).unwrap();
        std::fs::write(folder.join("run.cpp"), RUNNER).unwrap();
        Self { folder }
    }

    /// Compiles the sources and the runner, and returns the program.
    pub fn build(&self, compiler: &str, sources: &[Source], mode: Mode) -> PathBuf {
        let compile = || {
            let mut command = Command::new(compiler);
            command.current_dir(&self.folder).args(mode.flags());
            command
        };
        for source in sources {
            std::fs::write(self.folder.join(&source.name), &source.text).unwrap();
        }
        side_by_side(sources.len(), |nth| run(compile().arg("-c").arg(&sources[nth].name)));
        let objects = sources.iter().map(|source| Path::new(&source.name).with_extension("o"));
        run(compile().arg("run.cpp").args(objects).args(["-o", "kernels"]));
        self.folder.join("kernels")
    }

    /// Returns DXC's listings of kernels in HLSL. The command `dxc` writes the listing of `FILE` to
    /// `FILE.ll`, as `.ci/dxc` does.
    pub fn listings(&self, dxc: &str, kernels: &[String]) -> Vec<String> {
        let path = |nth: usize| self.folder.join(format!("{nth}.hlsl"));
        for (nth, text) in kernels.iter().enumerate() {
            std::fs::write(path(nth), text).unwrap();
        }
        let words: Vec<&str> = dxc.split_whitespace().collect();
        side_by_side(kernels.len().div_ceil(AT_ONCE), |nth| {
            let files = (nth * AT_ONCE..kernels.len().min((nth + 1) * AT_ONCE)).map(path);
            run(Command::new(words[0]).args(&words[1..]).arg("--listing").args(files));
        });
        (0..kernels.len())
            .map(|nth| std::fs::read_to_string(path(nth).with_extension("hlsl.ll")).unwrap())
            .collect()
    }
}

/// The number of files that DXC gets at once, because it takes a while to load.
const AT_ONCE: usize = 20;

/// Calls `problem` with each number below `count`, as many at a time as there are cores.
fn side_by_side(count: usize, problem: impl Fn(usize) + Sync) {
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from).min(count) {
            scope.spawn(|| {
                loop {
                    let nth = next.fetch_add(1, Ordering::Relaxed);
                    if nth >= count {
                        break;
                    }
                    problem(nth);
                }
            });
        }
    });
}

impl Drop for Workshop {
    fn drop(&mut self) {
        if std::env::var_os("LOGITS_HOSTILE_KEEP").is_none() {
            let _ = std::fs::remove_dir_all(&self.folder);
        }
    }
}

fn run(command: &mut Command) {
    let out = command.output().unwrap();
    let errors = String::from_utf8_lossy(&out.stderr);
    let first: String = errors.lines().take(40).collect::<Vec<_>>().join("\n");
    assert!(out.status.success(), "{command:?}\n{first}");
}

/// Runs a program over an input, and returns its output, both in the form of `run.cpp`.
pub fn output_of(program: &Path, input: &[u8], mode: Mode) -> Vec<u8> {
    let place = program.with_extension("in");
    std::fs::write(&place, input).unwrap();
    let argument = if mode == Mode::Hostile { "flush" } else { "as is" };
    let out = Command::new(program)
        .arg(argument)
        .stdin(std::fs::File::open(&place).unwrap())
        .output()
        .unwrap();
    assert!(out.status.success(), "{}: {}", out.status, String::from_utf8_lossy(&out.stderr));
    out.stdout
}
