//! Translates DXC's listings to LLVM IR that clang 14 compiles for any CPU.
//!
//! DXIL is the LLVM IR of 2016 with functions of its own for the operations of a GPU. Clang 14
//! still reads such text, so a kernel stays as DXC left it, except that functions `dx.op.*` become
//! loads, stores and intrinsics, variables of a thread become `alloca`s, and variables of a
//! workgroup get names of their own. Every operation on floats is `fast` in a listing: the driver
//! may reorder further than DXC did. [`Mode::Strict`] removes the word, so that its results are
//! DXC's alone.

use std::fmt::Write as _;

use super::program::{Mode, Source};

const RUNTIME: &str = include_str!("dxil.ll");

/// Returns source files of kernels, which are numbered in order, and one that lists them for
/// `run.cpp`.
pub fn sources(listings: &[String], mode: Mode) -> Vec<Source> {
    let mut glue = "#include \"metal_stdlib\"\n\
         extern \"C\" void dxil_barrier() { metal::threadgroup_barrier(metal::mem_flags::mem_threadgroup); }\n"
        .to_owned();
    let mut sources = Vec::new();
    for (number, listing) in listings.iter().enumerate() {
        // The bound buffers, and the number of workgroups in a slot of its own.
        write!(
            glue,
            "extern \"C\" void dxil_{number}(const void* const* bound, unsigned x, unsigned y, unsigned index);\n\
             hostile::Kernel known_{number}({number}, [](const hostile::Bound& bound, metal::uint3 group, metal::uint3 groups, \
             metal::uint index) {{\n    const void* at[10];\n    for (int i = 0; i < 9; i += 1) at[i] = bound.at[i];\n    \
             at[9] = &groups;\n    dxil_{number}(at, group.x, group.y, index);\n}});\n"
        )
        .unwrap();
        sources.push(Source {
            name: format!("{number}.ll"),
            text: Kernel::default().translated(number, listing, mode),
        });
    }
    sources.push(Source { name: "glue.cpp".to_owned(), text: glue });
    sources
}

/// A kernel while it is translated.
#[derive(Default)]
struct Kernel {
    text: String,
    /// Names of variables in the listing, and here.
    names: Vec<(String, String)>,
    /// The number of instructions that had no name in the listing.
    fresh: usize,
}

impl Kernel {
    fn translated(mut self, number: usize, listing: &str, mode: Mode) -> String {
        let attributes = match mode {
            Mode::Strict => "",
            Mode::Hostile => {
                r#""reciprocal-estimates"="all" "denormal-fp-math"="preserve-sign,preserve-sign" "unsafe-fp-math"="true""#
            }
        };
        let mut of_threads = Vec::new();
        let mut is_body = false;
        for line in listing.lines() {
            let line = without_notes(line);
            match line {
                _ if line.contains(" = type ") => self.put(line),
                "define void @main() {" => {
                    is_body = true;
                    self.put(&format!(
                        "define void @dxil_{number}(i8** %bound, i32 %group.0, i32 %group.1, i32 %index) {attributes} {{"
                    ));
                    for (ty, name, start) in &of_threads {
                        self.put(&format!("  {name} = alloca {ty}, align 16"));
                        self.put(&format!("  store {ty} {start}, {ty}* {name}"));
                    }
                }
                "}" if is_body => {
                    self.put(line);
                    break;
                }
                _ if line.starts_with('@') => {
                    if let Some(variable) = self.variable(number, line) {
                        of_threads.push(variable);
                    }
                }
                _ if is_body => self.instruction(line, mode),
                _ => {}
            }
        }
        self.text.push_str(RUNTIME);
        self.text
    }

    fn put(&mut self, line: &str) {
        self.text.push_str(line);
        self.text.push('\n');
    }

    fn fresh(&mut self) -> String {
        self.fresh += 1;
        format!("%fresh.{}", self.fresh)
    }

    /// Translates a variable outside of the kernel. Returns the type, the name and the initial
    /// value if each thread has one of its own.
    fn variable(&mut self, number: usize, line: &str) -> Option<(String, String, String)> {
        let (name, what) = line.split_once(" = ").unwrap();
        let what = what.split(", align").next().unwrap();
        let nth = self.names.len();
        if let Some((_, array)) = what.split_once("addrspace(3) global ") {
            let (ty, _) = array.split_once(']').unwrap();
            let here = format!("@shared.{number}.{nth}");
            self.put(&format!("{here} = global {ty}] {}, align 16", unset(ty)));
            self.names.push((name.to_owned(), here));
            return None;
        }
        let Some(array) = what.strip_prefix("internal global ") else {
            assert!(what.starts_with("internal unnamed_addr constant"), "{line}");
            self.put(line);
            return None;
        };
        let (ty, start) = array.split_once("] ").unwrap();
        let here = format!("%thread.{nth}");
        self.names.push((name.to_owned(), here.clone()));
        Some((format!("{ty}]"), here, start.to_owned()))
    }

    fn instruction(&mut self, line: &str, mode: Mode) {
        let mut line =
            line.replace("addrspace(3)*", "*").replace(" addrspace(3)", "").replace(" *", "*");
        for (there, here) in &self.names {
            line = line.replace(there.as_str(), here);
        }
        if mode == Mode::Strict {
            line = line.replace(" fast ", " ");
        }
        while let Some(shorter) = self.without_constant(&line) {
            line = shorter;
        }
        match line.split_once("@dx.op.") {
            Some((head, call)) => self.call(head, call, mode),
            None => self.put(&line),
        }
    }

    /// A thread's variable is an `alloca`, so its address is no constant expression. Moves one such
    /// expression into an instruction of its own and returns the line that uses its name.
    fn without_constant(&mut self, line: &str) -> Option<String> {
        let (start, kind) = ["getelementptr inbounds (", "getelementptr (", "bitcast ("]
            .into_iter()
            .filter_map(|kind| Some((line.rfind(kind)?, kind)))
            .max()?;
        let from = start + kind.len();
        let end = from + line[from..].find(')')?;
        let operands = &line[from..end];
        if !operands.contains("%thread.") && !operands.contains("%fresh.") {
            return None;
        }
        let name = self.fresh();
        self.put(&format!("  {name} = {}{operands}", kind.trim_end_matches('(')));
        Some(format!("{}{name}{}", &line[..start], &line[end + 1..]))
    }

    /// Translates a call of a GPU's function: `head` is the text before it, such as `%1 = call
    /// float`, and `call` its name and operands.
    fn call(&mut self, head: &str, call: &str, mode: Mode) {
        let (name, operands) = call.split_once('(').unwrap();
        let operands: Vec<&str> = operands.trim_end_matches(')').split(", ").collect();
        let value = |nth: usize| operands[nth].rsplit_once(' ').unwrap().1;
        let code = value(0);
        let result = head.split_once('=').map_or("", |(result, _)| result.trim());
        let fast = if mode == Mode::Strict { "" } else { "fast " };
        let line = match code {
            // FAbs
            "6" => format!("{result} = call {fast}float @llvm.fabs.f32({})", operands[1]),
            // Round_ne
            "26" => format!("{result} = call {fast}float @llvm.rint.f32({})", operands[1]),
            // FirstbitHi
            "33" => format!("{result} = call i32 @first_bit_high({})", operands[1]),
            // FMax
            "35" => format!(
                "{result} = call {fast}float @llvm.maxnum.f32({}, {})",
                operands[1], operands[2]
            ),
            // FMin
            "36" => format!(
                "{result} = call {fast}float @llvm.minnum.f32({}, {})",
                operands[1], operands[2]
            ),
            // IMax, IMin, UMax, UMin
            "37" | "38" | "39" | "40" => {
                let of = ["smax", "smin", "umax", "umin"][code.parse::<usize>().unwrap() - 37];
                format!("{result} = call i32 @llvm.{of}.i32({}, {})", operands[1], operands[2])
            }
            // CreateHandle
            "57" => return self.handle(result, value(1), value(3)),
            // CBufferLoadLegacy
            "59" => {
                let bytes = self.fresh();
                self.put(&format!("  {bytes} = mul {}, 16", operands[2]));
                return self.load(head, operands[1], &bytes, 4);
            }
            // AtomicBinOp
            "78" => {
                let kind = match value(2) {
                    "1" => "and",
                    "2" => "or",
                    "8" => "xchg",
                    other => panic!("atomic operation {other}"),
                };
                let word = self.word(operands[1], value(3), 0);
                format!("{result} = atomicrmw {kind} i32* {word}, {} seq_cst", operands[6])
            }
            // Barrier
            "80" => {
                let mode: u32 = value(1).parse().unwrap();
                assert_eq!(mode & 1, 1, "a barrier that waits for nobody");
                "call void @dxil_barrier()".to_owned()
            }
            // GroupId
            "94" => format!("{result} = add i32 %group.{}, 0", value(1)),
            // FlattenedThreadIdInGroup
            "96" => format!("{result} = add i32 %index, 0"),
            // RawBufferLoad
            "139" => return self.load(head, operands[1], value(2), words(value(4))),
            // RawBufferStore
            "140" => {
                for word in 0..words(value(8)) {
                    let place = self.word(operands[1], value(2), word);
                    self.put(&format!("  store {}, i32* {place}", operands[4 + word]));
                }
                return;
            }
            _ => panic!("dx.op.{name} {code} has no counterpart"),
        };
        self.put(&format!("  {line}"));
    }

    fn handle(&mut self, result: &str, class: &str, register: &str) {
        // Registers are bindings, except register 1 of class 2 (constants), which is the number of
        // workgroups.
        let place = if (class, register) == ("2", "1") { "9" } else { register };
        let (slot, buffer) = (self.fresh(), self.fresh());
        self.put(&format!("  {slot} = getelementptr i8*, i8** %bound, i32 {place}"));
        self.put(&format!("  {buffer} = load i8*, i8** {slot}"));
        self.put(&format!("  {result} = insertvalue %dx.types.Handle undef, i8* {buffer}, 0"));
    }

    fn word(&mut self, handle: &str, bytes: &str, word: usize) -> String {
        let place = self.fresh();
        self.put(&format!("  {place} = call i32* @word({handle}, i32 {bytes}, i32 {word})"));
        place
    }

    /// Loads `words` consecutive words into the struct type that `head` names.
    fn load(&mut self, head: &str, handle: &str, bytes: &str, words: usize) {
        let (result, ty) = head.split_once(" = call ").unwrap();
        let (result, ty) = (result.trim(), ty.trim());
        let is_float = ty.ends_with(".f32");
        let mut whole = "undef".to_owned();
        for word in 0..words {
            let place = self.word(handle, bytes, word);
            let mut value = self.fresh();
            self.put(&format!("  {value} = load i32, i32* {place}"));
            if is_float {
                let bits = std::mem::replace(&mut value, self.fresh());
                self.put(&format!("  {value} = bitcast i32 {bits} to float"));
            }
            let next = if word + 1 == words { result.to_owned() } else { self.fresh() };
            let kind = if is_float { "float" } else { "i32" };
            self.put(&format!("  {next} = insertvalue {ty} {whole}, {kind} {value}, {word}"));
            whole = next;
        }
    }
}

/// Returns a line without its comment, metadata and attributes.
fn without_notes(line: &str) -> &str {
    let line = line.split("  ;").next().unwrap();
    let line = if line.starts_with(';') { "" } else { line };
    let line = line.split(", !").next().unwrap();
    let line = line.split(" !").next().unwrap();
    line.split(" #").next().unwrap().trim_end()
}

/// Returns the contents of a workgroup's array, such as `[4 x float`, before anything is written
/// there: numbers that spoil every result.
fn unset(array: &str) -> String {
    let (count, ty) = array.trim_start_matches('[').split_once(" x ").unwrap();
    let value = match ty {
        "float" => "float 0x7FF8000000000000",
        "i32" => "i32 -1414812757",
        _ => panic!("an array of {ty}"),
    };
    format!("[{}]", vec![value; count.parse().unwrap()].join(", "))
}

/// Returns how many words a mask selects, which are the first ones.
fn words(mask: &str) -> usize {
    let mask: u8 = mask.parse().unwrap();
    assert_eq!(mask & (mask + 1), 0, "mask {mask}");
    mask.count_ones() as usize
}
