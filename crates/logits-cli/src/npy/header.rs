//! The header of a `.npy` file: a magic string, a version, and a Python dictionary of three keys.
//!
//! The format is numpy's, <https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html>.
//! A parser of any Python literal may take exponential time over nested brackets, so this one reads
//! only the header of an array of numbers. White space may stand between tokens, and each of the
//! three keys is there once:
//!
//! ```text
//! header  = "\x93NUMPY" version length "{" pair { "," pair } [ "," ] "}"
//! pair    = "'descr'" ":" string | "'fortran_order'" ":" ( "True" | "False" ) | "'shape'" ":" shape
//! shape   = "(" ")" | "(" integer "," ")" | "(" integer "," integer { "," integer } [ "," ] ")"
//! integer = digit { digit } [ "L" ]
//! string  = "'" { any byte but "'" } "'" | '"' { any byte but '"' } '"'
//! ```

use std::fmt;
use std::io::{self, Read};

/// Bytes of the longest header that is read. numpy reads 10,000; 64 sizes of 20 digits take 1,500.
const MAX_HEADER_BYTES: u32 = 1 << 16;
/// Dimensions of an array, as in numpy 2.
const MAX_DIMENSIONS: usize = 64;
const MAGIC: &[u8] = b"\x93NUMPY";

/// The kind of a number, as in numpy's `dtype.kind`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Float,
    Int,
    Uint,
}

/// The type of an array's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NumberType {
    pub(crate) kind: Kind,
    /// Bytes of a number: 2, 4 or 8 for floats; 1, 2, 4 or 8 for integers.
    pub(crate) itemsize: usize,
    pub(crate) is_big_endian: bool,
}

impl NumberType {
    /// Parses numpy's type code, such as `<f4`.
    fn parse(code: &str) -> Result<Self, String> {
        let plain = code.trim_start_matches(['<', '>', '=', '|']);
        let kind = match plain.get(..1) {
            Some("f") => Kind::Float,
            Some("i") => Kind::Int,
            Some("u") => Kind::Uint,
            _ => return Err(unreadable(code)),
        };
        let itemsize = match (kind, &plain[1..]) {
            (Kind::Int | Kind::Uint, "1") => 1,
            (_, "2") => 2,
            (_, "4") => 4,
            (_, "8") => 8,
            _ => return Err(unreadable(code)),
        };
        let is_big_endian = match &code[..code.len() - plain.len()] {
            ">" => true,
            "<" => false,
            "" | "=" | "|" => cfg!(target_endian = "big"),
            _ => return Err(unreadable(code)),
        };
        Ok(Self { kind, itemsize, is_big_endian })
    }
}

fn unreadable(code: &str) -> String {
    // ml_dtypes saves bfloat16 as bytes.
    let hint = if code.ends_with("V2") { "; save bfloat16 as float32" } else { "" };
    format!(
        "numbers of type {}, where float16, float32, float64 or integers are needed{hint}",
        quoted(code)
    )
}

impl fmt::Display for NumberType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            Kind::Float => "float",
            Kind::Int => "int",
            Kind::Uint => "uint",
        };
        write!(f, "{kind}{}", 8 * self.itemsize)
    }
}

/// A parsed header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) number: NumberType,
    /// Whether the array is in Fortran order. False where both orders are the same, as for a
    /// vector.
    pub(crate) is_fortran: bool,
    pub(crate) shape: Vec<usize>,
    /// Bytes before the data.
    pub(crate) length: u64,
}

impl Header {
    /// Reads a header. A claimed length above `MAX_HEADER_BYTES` is refused before memory is
    /// reserved.
    pub(crate) fn read(file: &mut impl Read) -> Result<Self, String> {
        const NOT: &str = "not a .npy file";
        let mut read = |bytes: &mut [u8]| {
            file.read_exact(bytes).map_err(|error| match error.kind() {
                io::ErrorKind::UnexpectedEof => format!("{NOT}: it ends within its header"),
                _ => error.to_string(),
            })
        };
        let mut start = [0; 8];
        read(&mut start)?;
        if !start.starts_with(MAGIC) {
            let what = if start.starts_with(b"PK") {
                "a zip file, as of .npz or PyTorch"
            } else {
                "no \\x93NUMPY at its start"
            };
            return Err(format!("{NOT}: {what}; save the array with numpy.save"));
        }
        let length = match start[6] {
            1 => {
                let mut length = [0; 2];
                read(&mut length)?;
                u16::from_le_bytes(length).into()
            }
            2 | 3 => {
                let mut length = [0; 4];
                read(&mut length)?;
                u32::from_le_bytes(length)
            }
            major => {
                return Err(format!(
                    "{NOT} of a known version: {major}.{}, where 1, 2 or 3 is needed",
                    start[7]
                ));
            }
        };
        if length > MAX_HEADER_BYTES {
            return Err(format!(
                "{NOT}: a header of {length} bytes, where at most {MAX_HEADER_BYTES} are read"
            ));
        }
        let mut text = vec![0; length as usize];
        read(&mut text)?;
        let header =
            Parser { text: &text, at: 0 }.header().map_err(|reason| format!("{NOT}: {reason}"));
        let start = if start[6] == 1 { 10 } else { 12 };
        let (number, is_fortran, shape) = header??;
        let is_fortran = is_fortran && shape.iter().filter(|&&size| size > 1).count() > 1;
        Ok(Self { number, is_fortran, shape, length: start + u64::from(length) })
    }

    /// Returns the header (version 1, C order, little-endian f32) of an array of this shape, padded
    /// so that the data starts at a multiple of 64 bytes.
    pub(crate) fn of_f32(shape: &[usize]) -> Vec<u8> {
        let sizes: Vec<_> = shape.iter().map(usize::to_string).collect();
        let comma = if sizes.len() == 1 { "," } else { "" };
        let text = format!(
            "{{'descr': '<f4', 'fortran_order': False, 'shape': ({}{comma}), }}",
            sizes.join(", ")
        );
        // The length fits into 16 bits: MAX_DIMENSIONS sizes of 20 digits take 1,500 bytes.
        let length = (10 + text.len() + 1).next_multiple_of(64) - 10;
        let mut bytes = [MAGIC, &[1, 0], &(length as u16).to_le_bytes(), text.as_bytes()].concat();
        bytes.resize(10 + length - 1, b' ');
        bytes.push(b'\n');
        bytes
    }
}

/// The first 24 characters of `text`, in quotes.
fn quoted(text: &str) -> String {
    let mut start: String = text.chars().take(24).collect();
    if start.len() < text.len() {
        start.push_str("...");
    }
    format!("{start:?}")
}

/// The outer error: the text is no header. The inner error: it is the header of an array that this
/// program does not read.
type Parsed = Result<(NumberType, bool, Vec<usize>), String>;

struct Parser<'t> {
    text: &'t [u8],
    at: usize,
}

impl Parser<'_> {
    fn header(mut self) -> Result<Parsed, String> {
        let (mut code, mut is_fortran, mut shape) = (None, None, None);
        self.expect(b'{')?;
        while !self.take(b'}') {
            let key = self.string()?;
            self.expect(b':')?;
            let is_new = match key.as_str() {
                // A list of fields or a pair of type and shape; there is no need to read it.
                "descr" if matches!(self.peek(), Some(b'[' | b'(')) => {
                    return Ok(Err("an array of records, not of numbers".to_owned()));
                }
                "descr" => code.replace(self.string()?).is_none(),
                "fortran_order" => is_fortran.replace(self.boolean()?).is_none(),
                "shape" => shape.replace(self.shape()?).is_none(),
                other => return Err(format!("the key {} in its header", quoted(other))),
            };
            if !is_new {
                return Err(format!("the key {} twice in its header", quoted(&key)));
            }
            if !self.take(b',') {
                self.expect(b'}')?;
                break;
            }
        }
        if self.peek().is_some() {
            return Err(format!("its header goes on after the dictionary, at byte {}", self.at));
        }
        let missing = |key: &str| format!("no key '{key}' in its header");
        let code = code.ok_or_else(|| missing("descr"))?;
        let is_fortran = is_fortran.ok_or_else(|| missing("fortran_order"))?;
        let shape = shape.ok_or_else(|| missing("shape"))?;
        Ok(NumberType::parse(&code).map(|number| (number, is_fortran, shape)))
    }

    /// The next byte that is no white space.
    fn peek(&mut self) -> Option<u8> {
        let rest = &self.text[self.at..];
        self.at += rest.iter().take_while(|byte| byte.is_ascii_whitespace()).count();
        self.text.get(self.at).copied()
    }

    fn take(&mut self, byte: u8) -> bool {
        let is_next = self.peek() == Some(byte);
        self.at += usize::from(is_next);
        is_next
    }

    fn expect(&mut self, byte: u8) -> Result<(), String> {
        if self.take(byte) {
            Ok(())
        } else {
            Err(self.expected(&format!("'{}'", char::from(byte))))
        }
    }

    fn expected(&mut self, what: &str) -> String {
        match self.peek() {
            None => format!("its header ends where {what} is expected"),
            Some(byte) => {
                let found = char::from(byte);
                format!("{found:?} at byte {} of its header, where {what} is expected", self.at)
            }
        }
    }

    /// A string in quotes. Escapes are not interpreted; no key or type code needs them.
    fn string(&mut self) -> Result<String, String> {
        let Some(quote @ (b'\'' | b'"')) = self.peek() else {
            return Err(self.expected("a string"));
        };
        let rest = &self.text[self.at + 1..];
        let length = rest
            .iter()
            .position(|&byte| byte == quote)
            .ok_or("a string in its header does not end")?;
        self.at += length + 2;
        Ok(String::from_utf8_lossy(&rest[..length]).into_owned())
    }

    fn boolean(&mut self) -> Result<bool, String> {
        self.peek();
        for (word, value) in [(&b"True"[..], true), (b"False", false)] {
            if self.text[self.at..].starts_with(word) {
                self.at += word.len();
                return Ok(value);
            }
        }
        Err(self.expected("True or False"))
    }

    fn shape(&mut self) -> Result<Vec<usize>, String> {
        self.expect(b'(')?;
        let (mut sizes, mut has_comma) = (Vec::new(), true);
        while !self.take(b')') {
            if !has_comma {
                return Err(self.expected("',' or ')'"));
            }
            if sizes.len() == MAX_DIMENSIONS {
                return Err(format!("a shape of more than {MAX_DIMENSIONS} dimensions"));
            }
            sizes.push(self.integer()?);
            has_comma = self.take(b',');
        }
        // In Python (3) is a number, and (3,) is a tuple.
        if sizes.len() == 1 && !has_comma {
            return Err(format!("the shape ({}), where ({0},) is expected", sizes[0]));
        }
        Ok(sizes)
    }

    /// A size, with the `L` of Python 2's long integers if there is one.
    fn integer(&mut self) -> Result<usize, String> {
        self.peek();
        let rest = &self.text[self.at..];
        let count = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
        if count == 0 {
            return Err(self.expected("a size"));
        }
        let digits = String::from_utf8_lossy(&rest[..count]);
        let size = digits
            .parse()
            .map_err(|_| format!("a size of {} is beyond this machine", quoted(&digits)))?;
        self.at += count + usize::from(rest.get(count) == Some(&b'L'));
        Ok(size)
    }
}
