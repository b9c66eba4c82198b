//! `.npy` files, read and written in parts that fit into memory.

mod header;
mod reader;
mod runs;
mod writer;

pub(crate) use reader::{Float, Reader};
pub(crate) use runs::Runs;
pub(crate) use writer::Writer;
