//! Translates naga's MSL to C++ that clang compiles for any CPU.

use std::fmt::Write as _;

use super::program::Source;

/// The bindings in order, by their names in the shaders.
const BINDINGS: [&str; 9] = [
    "params",
    "logits",
    "targets",
    "weights",
    "elements",
    "rows_out",
    "partials",
    "summary",
    "row_upstream",
];

/// The number of files that kernels are spread over: enough to keep two compilers busy to the end.
const FILES: usize = 4;

/// Returns source files of kernels, which are numbered in order.
pub fn sources(kernels: &[String]) -> Vec<Source> {
    (0..FILES)
        .map(|file| {
            let texts = kernels
                .iter()
                .enumerate()
                .skip(file)
                .step_by(FILES)
                .map(|(number, msl)| as_cpp(number, msl));
            let text =
                std::iter::once("#include \"metal_stdlib\"\n".to_owned()).chain(texts).collect();
            Source { name: format!("{file}.cpp"), text }
        })
        .collect()
}

/// Returns a kernel's MSL as C++: in a namespace of its own, with a function that passes the bound
/// buffers to the parameters.
fn as_cpp(number: usize, msl: &str) -> String {
    let mut text = format!("namespace {{ namespace kernel_{number} {{\n");
    for line in msl.lines().filter(|line| !line.starts_with("#include")) {
        // Runtime-sized arrays have one element in MSL, which clang might assume.
        let is_array = line.starts_with("typedef") && line.ends_with("[1];");
        let line =
            if is_array { line.replace("[1];", "[1u << 26];") } else { with_single_literals(line) };
        text.push_str(&line);
        text.push('\n');
    }
    for vector in ["float2", "float4", "int4", "uint2", "uint3", "uint4", "bool4"] {
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
                writeln!(memory, "alignas(16) {} shared_{name};", ty.trim_end_matches('&'))
                    .unwrap();
                format!("shared_{name}")
            }
            _ => {
                let binding = BINDINGS.iter().position(|&binding| binding == name);
                format!(
                    "bound.as<{ty}>({})",
                    binding.unwrap_or_else(|| panic!("{name} is no binding"))
                )
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
        let digits =
            |from: usize| bytes[from..].iter().take_while(|byte| byte.is_ascii_digit()).count();
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
