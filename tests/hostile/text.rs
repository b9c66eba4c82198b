//! From naga's MSL to C++ that clang takes for any CPU, and to a program.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

const HEADER: &str = include_str!("metal_stdlib");
const RUNNER: &str = include_str!("run.cpp");

/// Bindings in their order, as the shaders call them.
const BINDINGS: [&str; 9] =
    ["params", "logits", "targets", "weights", "elements", "rows_out", "partials", "summary", "row_gradients"];

/// How hard the compiler tries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Operations as they are written, and subnormal numbers.
    Strict,
    /// Whatever Metal and DXC allow themselves, and no subnormal numbers.
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
            // One rounding instruction in place of a call.
            if std::arch::is_x86_feature_detected!("sse4.1") {
                flags.push("-msse4.1");
            }
            if self == Self::Hostile {
                // Divisions by estimates, as WGSL allows.
                flags.push("-mrecip=all");
            }
            if self == Self::Hostile && std::arch::is_x86_feature_detected!("fma") {
                flags.push("-mfma");
            }
        }
        flags
    }
}

/// A kernel's MSL as C++: everything in a namespace of its own, and a function that knows where its parameters are bound.
fn as_cpp(number: usize, msl: &str) -> String {
    let mut text = format!("namespace {{ namespace kernel_{number} {{\n");
    for line in msl.lines().filter(|line| !line.starts_with("#include")) {
        // Arrays without an end have one element in MSL; clang may believe it.
        let is_array = line.starts_with("typedef") && line.ends_with("[1];");
        let line = if is_array { line.replace("[1];", "[1u << 26];") } else { with_single_literals(line) };
        text.push_str(&line);
        text.push('\n');
    }
    for vector in ["float2", "float4", "int4", "uint2", "uint4", "bool4"] {
        let made = format!("metal::make_{vector}(");
        text = text.replace(&format!("static_cast<metal::{vector}>("), &made);
        text = text.replace(&format!("metal::{vector}("), &made);
    }
    let (mut memory, mut arguments) = (String::new(), Vec::new());
    let (_, head) = msl.split_once("kernel void main_(").unwrap();
    let (head, _) = head.split_once(") {").unwrap();
    for parameter in head.lines().filter(|line| !line.is_empty()) {
        let parameter = parameter.trim_start_matches([',', ' ']);
        let (declared, _) = parameter.split_once(" [[").unwrap_or((parameter, ""));
        let (ty, name) = declared.rsplit_once(' ').unwrap();
        arguments.push(match name {
            "group" | "groups" | "index" => name.to_owned(),
            "_buffer_sizes" => "_mslBufferSizes {}".to_owned(),
            _ if ty.starts_with("threadgroup ") => {
                writeln!(memory, "alignas(16) {} shared_{name};", ty.trim_end_matches('&')).unwrap();
                format!("shared_{name}")
            }
            _ => {
                let binding = BINDINGS.iter().position(|&binding| binding == name);
                format!("bound.as<{ty}>({})", binding.unwrap_or_else(|| panic!("{name} is no binding")))
            }
        });
    }
    write!(
        text,
        "{memory}void run_bound(const hostile::Bound& bound, metal::uint3 group, metal::uint3 groups, metal::uint index) {{\n    \
         main_({});\n}}\nhostile::Kernel known({number}, run_bound);\n}} }}\n",
        arguments.join(", ")
    )
    .unwrap();
    text
}

/// Numbers with a point are f32 in MSL.
fn with_single_literals(line: &str) -> String {
    let mut text = String::with_capacity(line.len() + 8);
    let bytes = line.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
        if !is_word(bytes[at]) {
            text.push(bytes[at] as char);
            at += 1;
            continue;
        }
        let digits = |from: usize| bytes[from..].iter().take_while(|byte| byte.is_ascii_digit()).count();
        let whole = digits(at);
        let end = at + whole;
        if whole > 0 && bytes.get(end) == Some(&b'.') && digits(end + 1) > 0 {
            let end = end + 1 + digits(end + 1);
            text.push_str(&line[at..end]);
            text.push('f');
            at = end;
        } else {
            let length = bytes[at..].iter().take_while(|&&byte| is_word(byte)).count();
            text.push_str(&line[at..at + length]);
            at += length;
        }
    }
    text
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

/// A folder for programs, which goes with the value.
pub struct Workshop {
    folder: PathBuf,
}

impl Workshop {
    pub fn new(name: &str) -> Self {
        let folder = std::env::temp_dir().join(format!("logits-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("metal_stdlib"), HEADER).unwrap();
        std::fs::write(folder.join("run.cpp"), RUNNER).unwrap();
        Self { folder }
    }

    /// Compiles kernels, whose numbers are their places, and returns the program.
    pub fn build(&self, compiler: &str, kernels: &[String], mode: Mode) -> PathBuf {
        // As many kernels a file as keep two compilers busy to the end.
        let files: Vec<Vec<(usize, &String)>> =
            (0..FILES).map(|file| kernels.iter().enumerate().skip(file).step_by(FILES).collect()).collect();
        let object = |file: usize| self.folder.join(format!("{file}.o"));
        let next = std::sync::atomic::AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..std::thread::available_parallelism().map_or(1, usize::from).min(FILES) {
                scope.spawn(|| {
                    loop {
                        let file = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                        let Some(kernels) = files.get(file) else { break };
                        let source = self.folder.join(format!("{file}.cpp"));
                        let texts = kernels.iter().map(|&(number, msl)| as_cpp(number, msl));
                        let text: String =
                            std::iter::once("#include \"metal_stdlib\"\n".to_owned()).chain(texts).collect();
                        std::fs::write(&source, text).unwrap();
                        run(Command::new(compiler)
                            .args(mode.flags())
                            .arg("-c")
                            .arg(source)
                            .arg("-o")
                            .arg(object(file)));
                    }
                });
            }
        });
        let program = self.folder.join("kernels");
        let runner = self.folder.join("run.cpp");
        run(Command::new(compiler).args(mode.flags()).arg(runner).args((0..FILES).map(object)).arg("-o").arg(&program));
        program
    }
}

/// Files that the kernels of a program are spread over.
const FILES: usize = 4;

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

/// Runs a program over an input, both as `run.cpp` has them.
pub fn output_of(program: &Path, input: &[u8], mode: Mode) -> Vec<u8> {
    let place = program.with_extension("in");
    std::fs::write(&place, input).unwrap();
    let argument = if mode == Mode::Hostile { "flush" } else { "as is" };
    let out = Command::new(program).arg(argument).stdin(std::fs::File::open(&place).unwrap()).output().unwrap();
    assert!(out.status.success(), "{}: {}", out.status, String::from_utf8_lossy(&out.stderr));
    out.stdout
}
